"""The plugin ``log``: one line for each event, with what a person searches for."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from taskyard import TaskInfo
from taskyard.testing import make_event, run_notifier
from taskyard_log import Log


def test_an_event_is_one_line_that_names_the_task() -> None:
    event = make_event("task.failed", attempt=2, data={"error": {"code": "timeout"}}, task=TaskInfo("acme", "report.make", "slow", 7, ("vip",), "failed"))
    with capture_logs() as lines:
        assert run_notifier(Log, {"level": "warning"}, event, route="audit").status == "delivered"
    (line,) = lines
    assert (line["event"], line["log_level"], line["route"]) == ("task.failed", "warning", "audit")
    assert (line["task_id"], line["task_type"], line["namespace"]) == (str(event.task_id), "report.make", "acme")
    assert (line["attempt"], line["tags"], line["data"]) == (2, ["vip"], {"error": {"code": "timeout"}})


def test_data_can_be_left_out() -> None:
    with capture_logs() as lines:
        run_notifier(Log, {"data": False}, make_event(data={"private": 1}))
    assert "data" not in lines[0]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="level"):
        run_notifier(Log, {"level": "loud"})
