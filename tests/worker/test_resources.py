"""Resources of worker processes: made once a process, before the first task that needs them, ended at its stop; what can't be made loses no task."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from taskyard import system
from taskyard.plugins import load_plugins
from tests.stack import TESTBED, Stack, until

SOURCE = Path(__file__).with_name("shared_plugin.py")


@pytest.fixture
def shared(database_url: str, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """A dispatcher and a worker with one process for sync handlers, and a plugin that shares resources."""
    site = tmp_path / "site"
    info = site / "shared-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(SOURCE, site / "shared_plugin.py")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shared\nVersion: 1.0\nRequires-Dist: taskyard>=0.1\n")
    (info / "entry_points.txt").write_text("[taskyard.plugins]\nshared = shared_plugin\n")
    made = Stack(
        database_url,
        broker_url,
        tmp_path,
        PYTHONPATH=os.pathsep.join([str(TESTBED), str(site)]),
        TASKYARD_WORKER__PROCESSES="1",
        TASKYARD_DISPATCH__PARK_DELAY="0.3",
        TASKYARD_DISPATCH__TICK="0.2",
    )
    monkeypatch.syspath_prepend(site)
    made.registry = load_plugins(only=["shared", "testbed"])
    made.start("dispatcher")
    made.start("worker")
    yield made.ready()
    made.close()
    sys.modules.pop("shared_plugin", None)


def _submit(stack: Stack, *types: str) -> list[UUID]:
    return stack.submit_all([(type_, None, {"payload": None}) for type_ in types])


def _results(stack: Stack, ids: list[UUID]) -> list[Any]:
    rows = [stack.wait(id_) for id_ in ids]
    assert [(row["status"], row["error"], row["attempt"]) for row in rows] == [("succeeded", None, 1)] * len(ids)
    return [row["result"] for row in rows]


def _parked(stack: Stack, id_: UUID) -> str:
    """Why a task was parked, once it was."""
    statement = "SELECT data ->> 'reason' FROM events WHERE task_id = :id AND type = 'task.parked' LIMIT 1"
    return str(until(lambda: stack.value(statement, id=id_), what="task.parked"))


def test_a_resource_is_made_once_a_process_and_ended_at_the_workers_stop(shared: Stack) -> None:
    _results(shared, _submit(shared, "s.plain"))
    assert shared.witnessed("pool-begins") == [], "made before a task needed it"
    sync = _results(shared, _submit(shared, "s.sync", "s.sync", "s.sync"))
    in_loop = _results(shared, _submit(shared, "s.async", "s.async", "s.batch", "s.batch"))
    assert len({(one["pid"], one["resource"]) for one in sync}) == 1
    assert len({(one["pid"], one["resource"]) for one in in_loop}) == 1
    begun = {(kind, line[2]) for kind in ("pool", "client") for line in shared.witnessed(f"{kind}-begins")}
    assert begun == {("pool", str(sync[0]["pid"])), ("pool", str(in_loop[0]["pid"])), ("client", str(in_loop[0]["pid"]))}
    shared.stop("worker")
    assert {(kind, line[2]) for kind in ("pool", "client") for line in shared.witnessed(f"{kind}-ends")} == begun


def test_a_lifespan_that_fails_parks_its_tasks_and_nobody_elses_until_it_starts(shared: Stack) -> None:
    (shared.folder / "off").touch()
    waiting = _submit(shared, "s.fragile", "s.afragile")
    for id_ in waiting:
        assert _parked(shared, id_) == "The lifespan fragile of the plugin shared did not start: ConnectionError: it is switched off"
        assert (shared.task(id_)["attempt"], shared.task(id_)["lost"], shared.task(id_)["error"]) in ((0, 0, None), (1, 0, None))
    assert shared.wait(shared.submit("t.echo", {"word": "x"}))["status"] == "succeeded"
    _results(shared, _submit(shared, "s.sync", "s.async", "s.plain"))

    def told() -> dict[str, str]:
        with shared.engine.connect() as connection:
            return system.failed_plugins(connection)

    until(lambda: "it is switched off" in told().get("shared", ""), what="the condition")
    assert "lifespan.failed" in shared.log("worker")
    (shared.folder / "off").unlink()
    assert _results(shared, waiting) == [1, 1]
    until(lambda: told() == {}, what="the end of the condition")
    with shared.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM events WHERE type IN ('task.lost', 'task.retrying', 'task.failed')")).scalar() == 0


def test_a_tasks_time_begins_when_its_resources_are_there(shared: Stack) -> None:
    [slow] = _submit(shared, "s.slow")
    until(lambda: shared.witnessed("slow-begins"))
    # It has as long as the other one, and began before.
    late = shared.submit("t.asleep", {"seconds": 300}, timeout=1, max_attempts=1)
    assert shared.wait(late)["error"]["code"] == "timeout"
    assert shared.task(slow)["status"] == "running"
    (shared.folder / "slow").touch()
    assert _results(shared, [slow]) == [True]


def test_a_process_that_dies_while_a_lifespan_starts_loses_no_task(shared: Stack) -> None:
    (shared.folder / "deadly").touch()
    [deadly] = _submit(shared, "s.deadly")
    assert "the process ended while a lifespan of its plugin was starting" in _parked(shared, deadly)
    (shared.folder / "deadly").unlink()
    assert _results(shared, [deadly]) == [1]
    assert shared.task(deadly)["lost"] == 0


def test_a_default_that_a_factory_makes_is_the_same_in_every_attempt(shared: Stack) -> None:
    done = shared.wait(shared.submit("s.twice", {}))
    assert (done["status"], done["attempt"]) == ("succeeded", 2)
    assert [line[3] for line in shared.witnessed("twice")] == [done["result"], done["result"]]
