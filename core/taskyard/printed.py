"""Standard output and standard error that no plugin can close: as they are, or as log lines."""

from __future__ import annotations

import codecs
import io
import logging
import threading
from typing import Any, TextIO

#: A line that never ends comes in pieces of so many characters.
LONGEST = 16_384


class _LastingBytes(io.BufferedWriter):
    def close(self) -> None:
        """Write what is buffered, and stay open."""
        self.flush()


class Lasting(io.TextIOWrapper):
    """A standard stream that stays open, also when one that was made around its ``buffer`` is garbage: all who print and log in the process share it."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        raw = io.FileIO(stream.fileno(), "w", closefd=False)
        raw.name = stream.name
        super().__init__(_LastingBytes(raw), encoding=stream.encoding, errors=stream.errors, line_buffering=True, write_through=stream.write_through)

    @property
    def mode(self) -> str:
        """As that of a file which is open for writing."""
        return "w"

    def close(self) -> None:
        """Write what is buffered, and stay open."""
        self.flush()

    def detach(self) -> Any:
        """The stream of bytes. Unlike other streams, this one can still be written to."""
        self.flush()
        return self.buffer


class Printed(io.TextIOWrapper):
    """A text stream that turns what is written to it into log lines. ``stream`` is the stream it stands for, whose file descriptor it has.

    Whoever closes or detaches it leaves it as it is: it belongs to the process.
    """

    def __init__(self, name: str, level: int, stream: TextIO) -> None:
        self.stream: TextIO = stream.stream if isinstance(stream, Printed) else stream
        self._lines = _Lines(self, name, level)
        # A flush in the middle of a line does not end it: print(".", end="", flush=True) is one line too.
        super().__init__(self._lines, encoding="utf-8", errors="backslashreplace", newline="\n", write_through=True)

    @property
    def mode(self) -> str:
        """As that of a file which is open for writing."""
        return "w"

    def detach(self) -> Any:
        """The stream of bytes. Unlike other streams, this one can still be written to."""
        return self.buffer


class _Lines(io.BufferedIOBase):
    """The bytes of a :class:`Printed`: logs each full line, and keeps the rest of each thread's."""

    def __init__(self, owner: Printed, name: str, level: int) -> None:
        self._owner = owner
        self.name = f"<{name}>"
        self.mode = "wb"
        self._logger = logging.getLogger(name)
        self._level = level
        self._rest = threading.local()

    @property
    def raw(self) -> _Lines:
        """Itself: nothing is buffered here but unfinished lines."""
        return self

    def write(self, data: Any) -> int:
        """Take bytes in the encoding of the text stream."""
        with memoryview(data) as view:
            self._take(self._decode(view.tobytes()))
            return view.nbytes

    def writable(self) -> bool:
        """It can only be written to."""
        return True

    def fileno(self) -> int:
        """The stream's own: for programs that are started with it."""
        return self._owner.stream.fileno()

    def close(self) -> None:
        """Nothing: others print to it too."""

    def _decode(self, data: bytes) -> str:
        encoding = self._owner.encoding
        if getattr(self._rest, "encoding", None) != encoding:
            self._rest.encoding, self._rest.decoder = encoding, codecs.getincrementaldecoder(encoding)("backslashreplace")
        text: str = self._rest.decoder.decode(data)
        return text

    def _take(self, text: str) -> None:
        *lines, rest = (getattr(self._rest, "text", "") + text).split("\n")
        self._rest.text = rest if len(rest) < LONGEST else ""
        for line in lines if self._rest.text == rest else [*lines, rest]:
            self._say(line)

    def _say(self, line: str) -> None:
        # Logging tells of its own faults on standard error: without this it would go round in circles.
        if line.strip() and not getattr(self._rest, "saying", False):
            self._rest.saying = True
            try:
                self._logger.log(self._level, "%s", line)
            finally:
                self._rest.saying = False
