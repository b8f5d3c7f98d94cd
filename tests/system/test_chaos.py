"""Chaos, short: every fault at least once and nothing is lost; and each guard that is taken out is missed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskyard.failpoints import POINTS
from tests.ground import Ground, kinds
from tests.system.chaos import plan as plans
from tests.system.chaos.history import Event, Verdict, judge
from tests.system.chaos.hunts import HUNTS, TRIES, mutated
from tests.system.chaos.plan import KILLED, ROLES, SERVER_FAULTS, STOPS
from tests.system.chaos.report import print_table
from tests.system.chaos.run import Broken, Run, ground_of

KIND = kinds()[-1]
SEED = 7


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short, for the sockets in it, and open to the user that the servers run as."""
    with tempfile.TemporaryDirectory(prefix="ty-", dir="/tmp", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def ground(folder: Path) -> Iterator[Ground]:
    with ground_of(KIND, folder) as made:
        yield made


def _wrong(plan: plans.Plan, ground: Ground, folder: Path) -> dict[str, str]:
    """Run a plan; what is not as promised, by the count's name."""
    ground.heal()
    folder.mkdir()
    run = Run(plan, ground, folder)
    counts = run.go()
    print_table(plan, counts, run.progress.seconds())
    return {count.name: count.wrong for count in counts if count.wrong}


@pytest.mark.timeout(900)
def test_under_every_fault_nothing_is_lost_nothing_finishes_twice_and_nothing_is_stuck(ground: Ground, folder: Path) -> None:
    assert _wrong(plans.chaos(2_000, SEED, KIND), ground, folder / "all") == {}


@pytest.mark.timeout(900)
def test_without_a_fault_eight_clients_in_a_closed_loop_have_no_task_swept(ground: Ground, folder: Path) -> None:
    assert _wrong(plans.calm(600, SEED, KIND), ground, folder / "calm") == {}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutate", HUNTS)
def test_a_guard_that_is_taken_out_is_missed(mutate: str, ground: Ground, folder: Path) -> None:
    if mutate == "confirm" and KIND != "rabbitmq":
        pytest.skip("only RabbitMQ confirms and returns; it is not installed here")
    assert any(_finds(mutate, seed, ground, folder) for seed in range(SEED, SEED + TRIES))


def _finds(mutate: str, seed: int, ground: Ground, folder: Path) -> bool:
    try:
        wrong = _wrong(mutated(mutate, seed, KIND), ground, folder / f"{mutate}-{seed}")
    except Broken as error:
        wrong = {"the run itself": str(error)}
    print(f"{mutate}, seed {seed}: {wrong}")
    return HUNTS[mutate].found_by in wrong


# --- the plan ---


@pytest.mark.parametrize("kind", ["rabbitmq", "embedded"])
def test_the_same_seed_makes_the_same_plan(kind: str) -> None:
    ours, same, other = (plans.chaos(2_000, seed, kind) for seed in (SEED, SEED, SEED + 1))
    assert ours.faults == same.faults != other.faults
    assert [s.body["type"] for s in ours.submissions(0)] == [s.body["type"] for s in same.submissions(0)]


@pytest.mark.parametrize("seed", range(20))
def test_every_fault_and_every_failpoint_is_in_each_plan(seed: int) -> None:
    faults = plans.chaos(2_000, seed, "rabbitmq").faults
    assert {fault.kind for fault in faults if fault.lane == plans.SERVERS} == set(SERVER_FAULTS)
    assert {point for fault in faults if fault.kind == KILLED for point in fault.detail.split()} == set(POINTS)
    assert {fault.lane for fault in faults if fault.kind == KILLED} == set(ROLES)
    assert {fault.detail for fault in faults if fault.kind == "stopped at"} == set(STOPS)
    assert [fault.lane for fault in faults if fault.kind == plans.LOOP] == [plans.CLIENTS_LANE]
    assert all(0 < fault.at < 0.95 for fault in faults)


# --- the judge, who must see what the tables then show ---

SUBMITTED = Event("task.submitted", 1.0, {})
STARTED = Event("task.started", 2.0, {"fence": 1})
SUCCEEDED = Event("task.succeeded", 3.0, {})
AGAIN = Event("task.started", 4.0, {"fence": 2})
LOST = Event("task.lost", 3.5, {"fence": 1})
FAILED = Event("task.failed", 3.0, {})
RETRIED = Event("task.retrying", 5.0, {"manual": True})
HANDED_BACK = Event("task.released", 3.0, {"reason": "worker stopping"})


def _judged(events: list[Event], starts: list[tuple[float, int]]) -> dict[str, int]:
    verdict = Verdict()
    judge("t", events, starts, verdict)
    found = {name: getattr(verdict, name) for name in ("ended_twice", "moved_after_end", "started_after_end", "unexplained_runs", "repeated_runs")}
    if verdict.ends != verdict.lives:
        found["lives_without_end"] = verdict.lives - verdict.ends
    return {name: value for name, value in found.items() if value}


@pytest.mark.parametrize(
    ("events", "starts", "found"),
    [
        ([SUBMITTED, STARTED, SUCCEEDED], [(2.1, 1)], {}),
        ([SUBMITTED, STARTED, LOST, AGAIN, SUCCEEDED], [(2.1, 1), (4.1, 2)], {"repeated_runs": 1, "started_after_end": 1}),
        ([SUBMITTED, STARTED, HANDED_BACK, AGAIN, Event("task.succeeded", 6.0, {})], [(2.1, 1), (4.1, 2)], {"repeated_runs": 1}),
        ([SUBMITTED, STARTED, FAILED, RETRIED, Event("task.started", 6.0, {"fence": 2}), Event("task.failed", 7.0, {})], [(2.1, 1), (6.1, 2)], {}),
        ([SUBMITTED, STARTED], [(2.1, 1)], {"lives_without_end": 1}),
        ([SUBMITTED, STARTED, SUCCEEDED, FAILED], [(2.1, 1)], {"ended_twice": 1, "lives_without_end": -1}),
        ([SUBMITTED, STARTED, SUCCEEDED, Event("task.progress", 4.0, {})], [(2.1, 1)], {"moved_after_end": 1}),
        ([SUBMITTED, STARTED, SUCCEEDED], [(2.1, 1), (3.1, 1)], {"unexplained_runs": 1, "started_after_end": 1}),
        ([SUBMITTED, STARTED, AGAIN, Event("task.succeeded", 6.0, {})], [(2.1, 1), (4.1, 2)], {"unexplained_runs": 1}),
        ([SUBMITTED, STARTED, SUCCEEDED], [(2.1, 1), (2.2, 2)], {"unexplained_runs": 1}),
    ],
    ids=["well", "started late", "handed back", "retried by a person", "stuck", "twice", "moved", "repeated", "side by side", "never claimed"],
)
def test_the_judge_sees_what_is_wrong(events: list[Event], starts: list[tuple[float, int]], found: dict[str, int]) -> None:
    assert _judged(events, starts) == found
