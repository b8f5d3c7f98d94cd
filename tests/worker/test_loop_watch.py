"""A handler that blocks the event loop of all async tasks is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from taskyard import metrics
from taskyard.metrics import Tally
from tests.stack import until
from tests.worker.one_child import OneChild, zygote


def events(child: OneChild, name: str) -> list[dict[str, Any]]:
    """The lines of an event in the child's log."""
    return [line for line in map(json.loads, child.log().splitlines()) if line["event"] == name]


def test_a_blocked_event_loop_is_told_of_with_the_task_and_its_stack_while_it_is_blocked(tmp_path: Path) -> None:
    with zygote(tmp_path, TASKYARD_WORKER__BLOCK_WARNING="0.2") as bed:
        child, gate = bed.fork("async"), tmp_path / "gate"
        key = child.start("c.block", {"what": str(gate)})
        until(lambda: events(child, "async.blocked"), what="the warning")
        beside = child.start("c.anothing")
        gate.touch()
        id_ = child.wait(key).result
        assert child.wait(beside).report["outcome"] == "succeeded"
        while not child.strays:
            child.hear()
        warning = events(child, "async.blocked")[0]
        assert (warning["type"], warning["task_id"], warning["level"]) == ("c.block", id_, "warning")
        assert "wait_for(payload.what)" in warning["stack"]
        assert "taskyard_worker" not in warning["stack"], "frames that are not the handler's"
        stray = child.strays[0]
        assert (stray["type"], stray["blocked"] >= 0.2) == ("c.block", True)
        until(lambda: events(child, "async.goes_on"), what="the end of the block")


def test_its_seconds_are_counted_by_type_and_begin_at_zero() -> None:
    tally = Tally({"c.block": "default"}, {"default"})
    tally.own_queues = {"c.block": "default"}
    assert tally.zeros()[metrics.BLOCKED.name, ("c.block",)] == 0
    tally.count(metrics.BLOCKED, "c.block", by=2.5)
    tally.count(metrics.BLOCKED, "", by=1.0)
    assert tally.peek() == {(metrics.BLOCKED.name, ("c.block",)): 2.5, (metrics.BLOCKED.name, (metrics.OTHER,)): 1.0}
