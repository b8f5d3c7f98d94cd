"""What plugins do that nobody expects: each costs its own run, told plainly, and no other's."""

from __future__ import annotations

from typing import Any

import pytest

from tests.stack import Stack, until

pytestmark = pytest.mark.one_pair

# What was done, on which lanes, and what must be recorded: status, attempts, and the error's code.
FAILED_TWICE = "failed", 2
BOTH = "t.odd", "t.aodd"
RECORDED: list[tuple[str, tuple[str, ...], tuple[str, int], str | None]] = [
    ("number for a code", BOTH, ("failed", 1), "5"),
    ("objects for details", BOTH, ("failed", 1), "odd"),
    ("nul in its failure", BOTH, ("failed", 1), "c\\0d"),
    ("nul in its excuse", BOTH, FAILED_TWICE, "retry-later"),
    ("failure in a group", BOTH, ("failed", 1), "gone"),
    ("excuse in a group", BOTH, FAILED_TWICE, "busy"),
    ("error that is never tried again", BOTH, ("failed", 1), "PermissionError"),
    ("awaitable", ("t.odd",), ("succeeded", 1), None),
    ("no time", BOTH, FAILED_TWICE, "retry-later"),
    ("number for a message", BOTH, ("succeeded", 1), None),
    ("nul for a message", BOTH, ("succeeded", 1), None),
    ("huge number", BOTH, ("failed", 1), "invalid-result"),
    ("not a number", BOTH, ("failed", 1), "invalid-result"),
    ("deep", BOTH, ("failed", 1), "invalid-result"),
    ("object", BOTH, ("failed", 1), "invalid-result"),
    ("object for metadata", BOTH, ("failed", 1), "invalid-submission"),
    ("fork", BOTH, ("succeeded", 1), None),
    ("exit", BOTH, FAILED_TWICE, "SystemExit"),
    ("ctrl-c", BOTH, FAILED_TWICE, "KeyboardInterrupt"),
    ("generator's exit", BOTH, FAILED_TWICE, "GeneratorExit"),
    ("own cancellation", BOTH, FAILED_TWICE, "CancelledError"),
    ("unspeakable", BOTH, FAILED_TWICE, "Unspeakable"),
    ("sigterm", ("t.odd",), ("succeeded", 1), None),
    ("end of the loop", ("t.aodd",), ("succeeded", 1), None),
    ("task that exits", ("t.aodd",), ("succeeded", 1), None),
]
CASES = [(type_, what, expected, code) for what, types, expected, code in RECORDED for type_ in types]


@pytest.mark.parametrize(("type_", "what", "expected", "code"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_an_odd_run_is_recorded_plainly_and_harms_nobody_beside_it(stack: Stack, type_: str, what: str, expected: tuple[str, int], code: str | None) -> None:
    gate = stack.gate()
    beside = stack.submit("t.agated", gate.payload())
    stack.wait(beside, "running")
    row = stack.wait(stack.submit(type_, {"what": what}))
    assert ((row["status"], row["attempt"]), (row["error"] or {}).get("code"), row["lost"]) == (expected, code, 0), row["error"]
    gate.open()
    after = stack.wait(beside)
    assert (after["status"], after["attempt"], after["lost"]) == ("succeeded", 1, 0)


@pytest.mark.parametrize("type_", BOTH)
def test_a_copy_that_a_handler_has_forked_says_nothing(stack: Stack, type_: str) -> None:
    assert stack.wait(stack.submit(type_, {"what": "fork"}))["result"] == {"copy": False}


def test_a_run_that_waits_for_ever_is_still_tried_by_the_policy(stack: Stack) -> None:
    row = stack.wait(stack.submit("t.odd", {"what": "all time"}))
    assert (row["status"], row["attempt"], row["error"]["code"]) == ("failed", 2, "retry-later")


def test_progress_that_cannot_be_kept_as_it_is_takes_nobody_elses_along(stack: Stack) -> None:
    steps = stack.submit("t.steps")
    row = stack.wait(stack.submit("t.odd", {"what": "nul for a message"}))
    assert row["progress"] == {"fraction": 0.5, "message": "a\\0b\\ud800"}
    assert stack.wait(steps)["progress"] == {"fraction": 1.0, "message": "at 1.0"}


@pytest.mark.parametrize("what", ["other", "never validated"])
def test_a_result_is_of_the_declared_model_or_the_run_has_failed(stack: Stack, what: str) -> None:
    row = stack.wait(stack.submit("t.lie", {"what": what}))
    assert (row["status"], row["error"]["code"]) == ("failed", "invalid-result")


def test_a_payload_is_read_by_json_rules_in_the_worker_too(stack: Stack) -> None:
    row = stack.wait(stack.submit("t.strict", {"when": "2030-01-01T00:00:00Z"}))
    assert (row["status"], row["result"]) == ("succeeded", "2030-01-01T00:00:00Z")


@pytest.mark.parametrize("what", ["end of the process", "segmentation fault", "closed files"])
def test_a_handler_that_ends_the_shared_process_fails_alone(own_stack: Stack, what: str) -> None:
    stack = own_stack
    stack.start("dispatcher")
    stack.start("worker")
    stack.ready()
    gate = stack.gate()
    beside = stack.submit_all([("t.agated", gate.payload(), {})] * 40)
    for task in beside:
        stack.wait(task, "running")
    row = stack.wait(stack.submit("t.aodd", {"what": what}))
    assert (row["status"], row["error"]["code"], row["lost"]) == ("failed", "worker-lost", 4)
    gate.open()
    ended: list[Any] = [stack.wait(task) for task in beside]
    assert {(after["status"], after["attempt"]) for after in ended} == {("succeeded", 1)}
    assert max(after["lost"] for after in ended) <= 2, "at most once with all others, and once in a small group"
    worker = stack.family("worker")[0]
    until(lambda: len(worker.children(recursive=True)) <= 3, what="the end of the processes that were for the suspects")
