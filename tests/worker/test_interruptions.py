"""What a handler sees when its time is up or it is told to stop, and what becomes of what it makes of that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from taskyard import InvalidHandler, Retry, handler
from taskyard_worker.outcomes import decide
from tests.worker.one_child import OneChild, Zygote, zygote

BED = Path(__file__).parent / "interruptbed"
SOFT: dict[str, Any] = {"soft_timeout": 0.05}
KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """A zygote for all tests of this file."""
    with zygote(tmp_path_factory.mktemp("bed"), BED, "interruptbed") as made:
        yield made


def stop(child: OneChild, kind: str, key: int, reason: str) -> None:
    """End a run as the engine does."""
    child.tell(**{"interrupt" if kind == "sync" else "cancel": key}, reason=reason)


@KINDS
def test_a_handler_that_tidies_up_at_its_soft_timeout_has_succeeded_and_its_process_goes_on(bed: Zygote, kind: str) -> None:
    child = bed.fork(kind)
    for _ in range(2):
        assert child.wait(child.start(f"i.{kind}", {"what": "tidy"}, **SOFT)).result == ["soft-timeout", False]


@KINDS
def test_a_handler_that_lets_its_soft_timeout_through_has_timed_out(bed: Zygote, kind: str) -> None:
    child = bed.fork(kind)
    report = child.wait(child.start(f"i.{kind}", {"what": "through"}, **SOFT)).report
    assert report["error"] == {"code": "timeout", "message": "It ran longer than its soft timeout of 0.05 s."}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Retry(base=7, jitter=0), ("retry", 7)),
        (Retry(never=TimeoutError), ("failed", 0)),
        (Retry(on=OSError), ("retry", 2)),
        (Retry(on=KeyError), ("failed", 0)),
    ],
)
@pytest.mark.parametrize(("outcome", "reason"), [("interrupted", None), ("interrupted", "timeout"), ("error", "timeout")])
def test_a_timeout_is_tried_again_as_a_timeout_error_is(policy: Retry, expected: tuple[str, float], outcome: str, reason: Any) -> None:
    policy = replace(policy, jitter=0)
    ended = decide(uuid4(), 1, 1, policy, 60, {"outcome": outcome, "error": {"code": "timeout"}}, reason)
    assert (ended.outcome, ended.delay, (ended.error or {})["code"]) == (*expected, "timeout")


@KINDS
def test_what_a_handler_raises_at_its_soft_timeout_counts(bed: Zygote, kind: str) -> None:
    child = bed.fork(kind)
    report = child.wait(child.start(f"i.{kind}", {"what": "later"}, **SOFT)).report
    assert (report["outcome"], report["error"]["code"], report["delay"]) == ("error", "unfinished", 3)


@KINDS
def test_the_soft_timeout_comes_once_and_then_the_hard_one(bed: Zygote, kind: str) -> None:
    child = bed.fork(kind)
    key = child.start(f"i.{kind}", {"what": "again"}, **SOFT)
    child.hear_progress(key, "goes on")
    stop(child, kind, key, "timeout")
    assert child.wait(key).result == ["soft-timeout", "timeout"]


@KINDS
@pytest.mark.parametrize("reason", ["timeout", "cancel", "stop"])
def test_an_interruption_says_why(bed: Zygote, kind: str, reason: str) -> None:
    child = bed.fork(kind)
    key = child.start(f"i.{kind}", {"what": "tidy"})
    child.hear_progress(key, "begins")
    stop(child, kind, key, reason)
    assert child.wait(key).result[0] == reason


@pytest.mark.parametrize("where", ["body", "end"])
def test_a_coroutine_takes_an_interruption_as_a_cancellation_and_may_go_on_with_asyncio_after_a_soft_one(bed: Zygote, where: str) -> None:
    child = bed.fork("async")
    assert child.wait(child.start("i.asyncio", {"what": where}, **SOFT)).result == ["CancelledError", "soft-timeout", "asyncio's own", 0]


@pytest.mark.parametrize(("what", "outcomes"), [("tidy", ["succeeded"] * 3), ("through", ["interrupted"])])
def test_a_batch_handler_is_interrupted_for_all_of_its_tasks(bed: Zygote, what: str, outcomes: list[str]) -> None:
    child = bed.fork("async")
    report = child.wait(child.start_batch("i.batch", [{"what": what}] * 3, **SOFT)).report
    assert [one["outcome"] for one in report.get("items", [report])] == outcomes


@pytest.mark.parametrize("seconds", [0, -1, 60, 61, float("nan")])
def test_a_soft_timeout_lies_before_the_hard_one(seconds: float) -> None:
    with pytest.raises(InvalidHandler, match=r"soft_timeout=.*expected seconds, above 0 and below the timeout of 60"):
        handler("a.b", timeout=60, soft_timeout=seconds)
