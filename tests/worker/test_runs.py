"""What happens to a handler, from its task's claim to its end: the real worker and dispatcher as processes."""

from __future__ import annotations

import psutil
import pytest

from tests.stack import Stack, until


def test_a_sync_task_succeeds_with_its_result_and_history(stack: Stack) -> None:
    task = stack.submit("t.echo", {"word": "hello"})
    row = stack.wait(task)
    assert row["status"] == "succeeded"
    assert row["result"] == {"word": "hello"}
    assert (row["attempt"], row["fence"], row["worker_id"], row["error"]) == (1, 1, None, None)
    assert stack.events(task) == ["task.submitted", "task.started", "task.succeeded"]


def test_an_async_task_on_a_queue_that_only_its_handler_names_succeeds(stack: Stack) -> None:
    row = stack.wait(stack.submit("t.aecho", {"word": "wave"}))
    assert (row["status"], row["queue"], row["lane"], row["result"]) == ("succeeded", "io", "async", {"word": "wave"})


def test_an_error_is_retried_by_the_policy_and_then_fails_with_its_cause(stack: Stack) -> None:
    task = stack.submit("t.fail")
    row = stack.wait(task)
    assert (row["status"], row["attempt"], row["error"]["code"], row["error"]["message"]) == ("failed", 2, "ValueError", "as it must")
    assert row["error"]["where"].endswith(", in fail")
    assert 'raise ValueError("as it must")' in row["error"]["traceback"]
    assert "taskyard_worker" not in row["error"]["traceback"]
    lines = [line for line in stack.log("worker").splitlines() if str(task) in line]
    for event in ("task.retrying", "task.failed"):
        assert any(event in line and "ValueError" in line and "as it must" in line and "testbed.py:" in line for line in lines), stack.log("worker")
    assert stack.events(task) == ["task.submitted", "task.started", "task.retrying", "task.started", "task.failed"]


def test_a_handler_may_ask_to_run_later_until_it_succeeds(stack: Stack) -> None:
    row = stack.wait(stack.submit("t.flaky"))
    assert (row["status"], row["attempt"], row["result"]) == ("succeeded", 3, 3)


def test_task_failed_is_not_retried_and_keeps_code_and_details(stack: Stack) -> None:
    row = stack.wait(stack.submit("t.refuse", max_attempts=5))
    assert (row["status"], row["attempt"]) == ("failed", 1)
    assert row["error"] == {"code": "refused", "message": "no", "hint": "stop asking"}


@pytest.mark.one_pair
@pytest.mark.parametrize("type_", ["t.spin", "t.deaf", "t.aspin", "t.astubborn"])
def test_a_timeout_really_ends_a_handler_and_the_worker_goes_on(stack: Stack, type_: str) -> None:
    row = stack.wait(stack.submit(type_))
    assert (row["status"], row["error"]["code"]) == ("failed", "timeout")
    assert stack.wait(stack.submit("t.echo"))["status"] == "succeeded"
    assert stack.wait(stack.submit("t.aecho"))["status"] == "succeeded"


@pytest.mark.one_pair
@pytest.mark.parametrize("type_", ["t.soft", "t.asoft"])
def test_a_soft_timeout_lets_a_handler_tidy_up_and_is_the_same_part_of_any_timeout(stack: Stack, type_: str) -> None:
    row = stack.wait(stack.submit(type_))
    assert (row["status"], row["result"]) == ("succeeded", ["soft-timeout", 59.8])
    assert stack.wait(stack.submit(type_, timeout=30))["result"] == ["soft-timeout", 29.9]


@pytest.mark.one_pair
def test_a_context_knows_its_tasks_namespace_parent_and_attempts(stack: Stack) -> None:
    parent = stack.submit("t.about", max_attempts=5)
    assert stack.wait(parent)["result"] == {"namespace": "default", "parent": None, "max_attempts": 5}
    with stack.engine.begin() as connection:
        child = connection.exec_driver_sql("SELECT id FROM tasks WHERE parent_id = %s", (parent,)).scalar_one()
    assert stack.wait(child)["result"] == {"namespace": "default", "parent": str(parent), "max_attempts": 3}


@pytest.mark.one_pair
def test_a_stored_payload_that_does_not_fit_fails_its_task_at_its_first_attempt(stack: Stack) -> None:
    with stack.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO queues (name, paused_at) VALUES ('default', now()) ON CONFLICT (name) DO UPDATE SET paused_at = now()")
    task = stack.submit("t.echo", {"word": "x"}, max_attempts=5)
    with stack.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE tasks SET payload = '{\"word\": [1]}' WHERE id = %s", (task,))
        connection.exec_driver_sql("UPDATE queues SET paused_at = NULL WHERE name = 'default'")
    row = stack.wait(task)
    assert (row["status"], row["attempt"], row["error"]["code"], row["error"]["problems"][0][0]) == ("failed", 1, "invalid-payload", "/word")


@pytest.mark.one_pair
def test_a_timeout_ends_what_the_handler_started_too(stack: Stack) -> None:
    task = stack.submit("t.grandchild", {"word": "orphan"})
    assert stack.wait(task)["error"]["code"] == "timeout"
    pid = int(stack.witnessed("grandchild")[-1][2])
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 10, "the grandchild's end")


def test_a_task_that_kills_its_process_is_run_again_and_then_fails_as_worker_lost(stack: Stack) -> None:
    task = stack.submit("t.die")
    row = stack.wait(task)
    assert (row["status"], row["error"]["code"], row["lost"], row["attempt"]) == ("failed", "worker-lost", 4, 1)
    assert stack.events(task).count("task.lost") == 3
    assert [line[3] for line in stack.witnessed("die", task)] == ["1", "2", "3", "4"], "each run has a fence of its own"


@pytest.mark.one_pair
@pytest.mark.parametrize("type_", ["t.agated", "t.gated", "t.spin"])
def test_cancel_ends_a_running_handler_that_would_go_on_for_ever(stack: Stack, type_: str) -> None:
    payload = {} if type_ == "t.spin" else stack.gate().payload()
    task = stack.submit(type_, payload, timeout=600)
    stack.wait(task, "running")
    stack.cancel(task)
    row = stack.wait(task)
    assert row["status"] == "cancelled"
    assert stack.events(task) == ["task.submitted", "task.started", "task.cancel_requested", "task.cancelled"]


def test_progress_is_written_while_a_task_runs(stack: Stack) -> None:
    task = stack.submit("t.steps")
    until(lambda: (stack.task(task)["progress"] or {}).get("message") == "at 0.25")
    row = stack.wait(task)
    assert row["progress"] == {"fraction": 1.0, "message": "at 1.0"}
    assert row["result"] == {"config": None, "deadline": "True"}
    assert "task.progress" in stack.events(task)


def test_children_are_submitted_with_the_success_of_their_parent(stack: Stack) -> None:
    parent = stack.submit("t.parent", {"word": "kid"})
    ids = stack.wait(parent)["result"]
    for id_ in ids:
        row = stack.wait(id_)
        assert (row["status"], row["parent_id"], row["priority"]) == ("succeeded", parent, 7)


@pytest.mark.parametrize(("type_", "code"), [("t.nul", "invalid-result"), ("t.large", "result-too-large")])
def test_a_result_that_cannot_be_kept_fails_its_task_and_no_other(stack: Stack, type_: str, code: str) -> None:
    good = stack.submit("t.echo", {"word": "beside"})
    row = stack.wait(stack.submit(type_))
    assert (row["status"], row["error"]["code"]) == ("failed", code)
    assert stack.wait(good)["status"] == "succeeded"


def test_a_thousand_async_sleeps_run_at_once(stack: Stack) -> None:
    gate = stack.gate()
    tasks = stack.submit_all([("t.agated", gate.payload("crowd"), {})] * 1000)
    running = "SELECT count(*) FROM tasks WHERE id = ANY (:ids) AND status = 'running'"
    until(lambda: stack.value(running, ids=tasks) == 1000, what="1,000 tasks that run at the same time")
    gate.open()
    for task in tasks:
        assert stack.wait(task)["status"] == "succeeded"


@pytest.mark.one_pair
def test_plugins_may_observe_what_ran(stack: Stack) -> None:
    task = stack.submit("t.echo", {"word": "seen"})
    stack.wait(task)
    until(lambda: stack.witnessed("observed", "task.succeeded", task))
