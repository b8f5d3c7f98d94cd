"""What a handler's forks inherit: `multiprocessing` works as in any program, and no fork speaks for its task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker.one_child import OneChild, Zygote, zygote


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """A zygote for all tests of this file."""
    with zygote(tmp_path_factory.mktemp("bed")) as made:
        yield made


@pytest.fixture(scope="module")
def children(bed: Zygote) -> dict[str, OneChild]:
    """A child of each kind."""
    return {"sync": bed.fork("sync"), "async": bed.fork("async")}


DEEDS: list[tuple[str, Any]] = [
    ("pools", 10),
    ("left pool", 0),
    ("terminate", -15),
    ("fork executor", [0, 1, 4, 9]),
    ("spawn executor", [0, 1, 4, 9]),
    ("forkserver executor", [0, 1, 4, 9]),
    ("fork that returns", 0),
    ("fork that raises", 1),
    ("fork that exits", 5),
    ("fork that exits well", 0),
    ("program", "[]"),
]


@pytest.mark.parametrize(("kind", "type_"), [("sync", "c.do"), ("async", "c.ado"), ("async", "c.do")], ids=["process", "loop", "thread of the loop"])
@pytest.mark.parametrize(("what", "result"), DEEDS, ids=[what for what, _ in DEEDS])
def test_processes_that_a_handler_starts_end_as_python_says_and_say_nothing(
    children: dict[str, OneChild], kind: str, type_: str, what: str, result: Any
) -> None:
    child = children[kind]
    ended = child.run(type_, {"what": what})
    assert (ended.result, ended.progress, ended.lines) == (result, [], [])
    assert child.strays == []


@pytest.mark.parametrize(("kind", "type_"), [("sync", "c.do"), ("async", "c.ado")])
def test_what_a_process_of_multiprocessing_says_is_not_its_tasks(children: dict[str, OneChild], kind: str, type_: str) -> None:
    ended = children[kind].run(type_, {"what": "fork that speaks"})
    assert (ended.result, ended.progress, ended.lines) == (0, [], [])


def test_a_fork_keeps_the_signal_handler_that_its_task_has_set(children: dict[str, OneChild]) -> None:
    assert children["sync"].do("own handler").result == 17


def test_a_fork_of_the_event_loop_takes_no_step_of_another_task(bed: Zygote, tmp_path: Path) -> None:
    child, steps = bed.fork("async"), tmp_path / "steps"
    beside = [child.start("c.beside", {"what": "", "with_": str(steps)}) for _ in range(3)]
    forks = [child.start("c.afork", {"what": ""}) for _ in range(3)]
    assert [child.wait(key).result for key in (*beside, *forks)] == [200] * 3 + [0] * 3
    assert [child.wait(key).progress + child.wait(key).lines for key in forks] == [[]] * 3
    written = steps.read_text().split()
    assert (len(written), len(set(written))) == (600, 1)
