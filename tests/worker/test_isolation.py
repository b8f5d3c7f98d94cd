"""Tasks share processes, and none notices what another one has done there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker.one_child import Ended, OneChild, Zygote, zygote

WAYS = (
    *("dictConfig", "dictConfig of root", "basicConfig", "disable", "no handlers", "level", "level of ours", "filter", "formatter"),
    *("factory", "structlog", "structlog's processors", "structlog reset"),
)


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """A zygote for all tests of this file."""
    folder = tmp_path_factory.mktemp("bed")
    with zygote(folder, PWD_AT_START=str(folder)) as made:
        yield made


@pytest.fixture
def child(bed: Zygote) -> OneChild:
    """A sync child."""
    return bed.fork()


def test_what_a_task_has_changed_of_its_process_is_as_it_was_for_the_next(child: OneChild) -> None:
    before = child.do("look").result
    assert child.do("spoil").report["outcome"] == "succeeded"
    assert child.do("look").result == before
    assert "handler.changed_its_process" in child.log()


def test_what_a_task_binds_is_in_no_other_tasks_lines(child: OneChild) -> None:
    child.do("spoil")
    [line] = child.do("speak", "mine").lines
    assert (line["message"], line["fields"]) == ("mine", {})


def test_a_thread_left_behind_speaks_for_nobody_else(child: OneChild, tmp_path: Path) -> None:
    end = tmp_path / "end"
    child.do("leave thread", str(end))
    ended = child.do("speak", "mine")
    end.touch()
    assert {said["message"] for said in ended.progress} == {"mine"}
    assert ended.said == ["mine"]


def fresh_log(child: OneChild, secret: str) -> tuple[Ended, str]:
    """What a task logs by all ways, and what the child's log has of it."""
    before = len(child.log())
    return child.do("log", secret), child.log()[before:]


@pytest.mark.parametrize("how", WAYS)
def test_no_set_up_of_logging_silences_or_unmasks_the_next_task(bed: Zygote, how: str) -> None:
    child = bed.fork()
    child.do("silence", how)
    ended, log = fresh_log(child, "hunter2")
    assert [(line["message"], line["fields"]["password"]) for line in ended.lines] == [("kept", "***")]
    assert "hunter2" not in log
    written = [json.loads(line)["event"] for line in log.splitlines()]
    assert [event for event in written if event.startswith(("kept", "by "))] == ["kept", "by structlog", "by the standard library: amqp://u:***@h"]


@pytest.mark.parametrize("how", WAYS)
def test_it_costs_no_line_of_tasks_that_run_beside_it(bed: Zygote, how: str) -> None:
    child = bed.fork("async")
    silencing = child.start("c.ado", {"what": "silence", "with_": how})
    beside = child.start("c.atry", {"what": "beside"})
    child.wait(silencing)
    assert child.wait(beside).said.count("beside") >= 3


@pytest.mark.parametrize("format_", ["console", "json"])
def test_a_task_that_closes_the_standard_streams_closes_them_for_nobody(tmp_path: Path, format_: str) -> None:
    with zygote(tmp_path, TASKYARD_LOG__FORMAT=format_) as bed:
        child = bed.fork()
        assert child.do("close streams").report["outcome"] == "succeeded"
        assert child.do("log", "hunter2").said == ["kept"]
        assert child.do("print", "after").report["outcome"] == "succeeded"
        assert "by the standard library" in child.log()
        assert "after" in child.log()


def others(ended: Ended, own: str) -> list[Any]:
    """What a task has of others."""
    words = [line["message"] for line in ended.lines] + [said["message"] for said in ended.progress]
    fields = [value for line in ended.lines for name, value in line["fields"].items() if name == "mine"]
    return [each for each in (*words, *fields) if each != own]


@pytest.mark.parametrize(("kind", "type_", "least"), [("sync", "c.try", 1), ("async", "c.atry", 3)])
def test_of_a_thousand_tasks_of_two_namespaces_that_all_try_none_has_anothers(bed: Zygote, kind: str, type_: str, least: int) -> None:
    child = bed.fork(kind)
    names = [f"{namespace}-{number}" for number in range(500) for namespace in ("acme", "globex")]
    keys = [child.start(type_, {"what": name}, namespace=name.partition("-")[0]) for name in names]
    ended = [child.wait(key) for key in keys]
    assert {each.report["outcome"] for each in ended} == {"succeeded"}
    assert [others(each, name) for each, name in zip(ended, names, strict=True)] == [[]] * 1000
    assert min(len(each.lines) for each in ended) >= least
    assert child.strays == [] or {"lines", "progress"} >= {name for stray in child.strays for name in stray} - {"key", "dropped", "report"}


def test_the_environment_of_the_tests_was_not_changed() -> None:
    assert "TOKEN" not in os.environ
