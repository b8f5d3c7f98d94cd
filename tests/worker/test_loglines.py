"""Log lines on their way out of a child: bounded, counted, and in order."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import pytest

from taskyard_worker import loglines
from taskyard_worker.loglines import Outbox, Rings, line
from tests.stack import PATIENCE


def read(**event: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(line({"level": "info", "event": "said", **event}, {"task_id": "t", "attempt": 1}))
    return made


def test_a_line_has_what_its_handler_said_and_not_what_its_run_is() -> None:
    made = read(task_id="t", attempt=2, n=1, api_key="abc", logger="x")
    assert (made["message"], made["level"], made["fields"]) == ("said", "info", {"attempt": 2, "n": 1, "api_key": "***"})


def test_long_texts_are_cut_and_what_postgres_refuses_is_told_as_text() -> None:
    assert read(event="x" * 9000)["message"] == "x" * 8000
    assert read(note="x" * 9000)["fields"] == {"note": "x" * 8000}
    assert read(exception="a" + "x" * 8000)["fields"] == {"exception": "x" * 8000}, "the end of a trace tells most"
    assert list(read(**{str(n): "x" * 7000 for n in range(5)})["fields"]) == ["cut"]
    made = read(nan=float("nan"), nul="a\x00b", deep=[{"a": "\ud800"}], many=10**5000)
    assert (made["fields"]["nan"], made["fields"]["nul"]) == ("nan", "a\\0b")
    assert "\x00" not in json.dumps(made)


def test_no_line_raises_in_its_handler() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    itself: list[Any] = []
    itself.append(itself)
    assert read(event="rude", value=Rude()).items() >= {"message": "rude", "fields": {"value": "(Rude)"}}.items()
    assert "…" in json.dumps(read(value=itself)["fields"], ensure_ascii=False)


def test_the_newest_lines_push_out_their_own_runs_oldest_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loglines, "LIMIT", 40)
    rings = Rings[str](60)
    rings.add("a", [f"a{n:08}" for n in range(10)])
    rings.add("b", ["b" * 10] * 3)
    rings.add("b", [], dropped=5)
    assert rings.take("b", 10) == (["b" * 10], 6)
    assert rings.take("b") == (["b" * 10], 0)
    lines, dropped = rings.take("a")
    assert (lines, dropped) == ([f"a{n:08}" for n in range(6, 10)], 6)
    assert not rings
    rings.add("c", ["c" * 40])
    assert rings.take("c") == (["c" * 40], 0), "what was taken left its room"


def test_an_outbox_is_woken_once_until_it_is_empty() -> None:
    woken: list[int] = []
    outbox = Outbox(lambda: woken.append(1))
    for n in range(4000):
        outbox.add(1, f"{n:0100}")
    seen, more = [], True
    while more:
        assert len(woken) == 1
        messages, more = outbox.take()
        assert sum(len(text) for message in messages for text in message["lines"]) <= loglines.FLOW + 100
        seen += [int(text) for message in messages for text in message["lines"]]
    assert seen == list(range(4000))
    outbox.add(2, "x")
    assert len(woken) == 2
    assert outbox.last(2) == [{"key": 2, "lines": ["x"], "dropped": 0}]
    assert outbox.last(2) == []


def test_a_forked_copy_may_log_though_another_thread_held_the_lock() -> None:
    outbox = Outbox(lambda: None)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with outbox._lock:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    pid = os.fork()
    if pid == 0:
        outbox.add(1, "from the copy")
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    done.set()
    holder.join()
    assert outbox.take() == ([], False)


def test_lines_that_a_thread_has_taken_go_out_before_the_report_of_their_run() -> None:
    sent: list[str] = []
    taken, go_on = threading.Event(), threading.Event()

    def send(message: dict[str, Any]) -> None:
        taken.set()
        assert go_on.wait(PATIENCE)
        sent.append(message["lines"][0])

    def report() -> None:
        sent.extend(line for message in outbox.last(1) for line in message["lines"])
        sent.append("report")

    outbox = loglines.emptied_by_threads(send)
    outbox.add(1, "line")
    assert taken.wait(PATIENCE)
    reporter = threading.Thread(target=report)
    reporter.start()
    go_on.set()
    reporter.join(PATIENCE)
    assert sent == ["line", "report"]
