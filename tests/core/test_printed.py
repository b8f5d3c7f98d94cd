"""Standard output as log lines is still a text stream, with all that programs and libraries do to one."""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskyard.printed import Printed


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Printed]:
    """A stream that stands for a file."""
    with (tmp_path / "out").open("w") as file:
        yield Printed("stdout", logging.INFO, file)


def raw_writer(stream: Printed) -> None:
    wrapper = io.TextIOWrapper(stream.buffer, encoding="utf-8", write_through=True)
    wrapper.write("é\n")
    wrapper.close()


def encoded(stream: Any) -> None:
    codecs.getwriter("utf-8")(stream.buffer).write("é\n")


def closed(stream: Printed) -> None:
    stream.close()
    stream.buffer.close()
    stream.write("a\n")


def halves(stream: Printed) -> None:
    stream.buffer.write("é".encode()[:1])
    stream.buffer.write("é\n".encode()[1:])


def latin(stream: Printed) -> None:
    stream.reconfigure(encoding="latin-1")
    stream.write("é\n")
    stream.buffer.write("é\n".encode("latin-1"))


WRITTEN: list[tuple[Callable[[Any], Any], list[str]]] = [
    (lambda stream: print("é", file=stream), ["é"]),
    (lambda stream: stream.buffer.write("é\n".encode()), ["é"]),
    (lambda stream: stream.buffer.raw.write(b"a\n"), ["a"]),
    (lambda stream: stream.buffer.write(memoryview(b"a\nb\n")), ["a", "b"]),
    (lambda stream: stream.buffer.write(bytearray(b"a\xff\n")), ["a\\xff"]),
    (lambda stream: stream.buffer.writelines([b"a\n", b"b\n"]), ["a", "b"]),
    (lambda stream: stream.writelines(["a", "b\n"]), ["ab"]),
    (lambda stream: stream.write("\ud800\n"), ["\\ud800"]),
    (lambda stream: print("a", "b", sep="", end="\n", file=stream, flush=True), ["ab"]),
    (encoded, ["é"]),
    (lambda stream: (stream.detach().write(b"a\n"), stream.write("b\n")), ["a", "b"]),
    (closed, ["a"]),
    (raw_writer, ["é"]),
    (halves, ["é"]),
    (latin, ["é", "é"]),
]


@pytest.mark.parametrize(("write", "lines"), WRITTEN)
def test_whatever_way_it_is_written_to_each_full_line_is_a_log_line(
    stream: Printed, write: Callable[[Printed], Any], lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write(stream)
    assert [record.getMessage() for record in caplog.records if record.name == "stdout"] == lines


def test_it_tells_of_itself_what_a_text_stream_tells(stream: Printed) -> None:
    stream.reconfigure(encoding="utf-8", errors="strict", line_buffering=True, write_through=True)
    told = (stream.encoding, stream.errors, stream.name, stream.mode, stream.line_buffering, stream.newlines)
    assert told == ("utf-8", "strict", "<stdout>", "w", True, None)
    assert (stream.writable(), stream.isatty(), stream.readable(), stream.seekable(), stream.closed, stream.buffer.closed) == (True, *[False] * 5)
    assert isinstance(stream, io.TextIOBase)
    with pytest.raises(io.UnsupportedOperation):
        stream.read()


def test_it_has_the_descriptor_of_the_stream_that_it_stands_for(stream: Printed, tmp_path: Path) -> None:
    assert stream.fileno() == stream.buffer.fileno() == stream.stream.fileno()
    subprocess.run([sys.executable, "-c", "print('from a program')"], stdout=stream, check=True)
    assert (tmp_path / "out").read_text() == "from a program\n"


def test_it_can_be_redirected_and_comes_back(stream: Printed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys, "stdout", stream)
    with contextlib.redirect_stdout(io.StringIO()) as elsewhere:
        print("elsewhere")
    print("here")
    assert (elsewhere.getvalue(), [record.getMessage() for record in caplog.records]) == ("elsewhere\n", ["here"])
