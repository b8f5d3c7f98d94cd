"""Worker and dispatcher while their database or broker is away, cut off, silent, emptied or restarted: nothing lost, nothing stuck."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from uuid import UUID, uuid4

import psutil
import pytest
from pydantic import SecretStr

from taskyard.dispatch.app import broker_queue, create_celery
from taskyard.dispatch.publisher import Publisher
from taskyard.lifecycle import Hint
from taskyard.settings import BrokerSettings, Settings
from tests.ground import Ground, delete, kinds, make_anew, purge
from tests.stack import Stack, until

#: Where the broker's kind changes nothing: the one that production has, if it is here.
one_pair = pytest.mark.parametrize("ground_kind", kinds()[-1:], indirect=True)


@pytest.fixture
def stack(shared_hard: Stack, healed: Ground) -> Stack:
    """Works: what the test before left behind is over."""
    _each_succeeded(shared_hard, [shared_hard.submit("t.echo", {"word": "first"}), shared_hard.submit("t.asleep", {"seconds": 0})])
    return shared_hard


def _each_succeeded(stack: Stack, tasks: Sequence[UUID], seconds: float = 60) -> None:
    for task in tasks:
        assert stack.wait(task, seconds=seconds)["status"] == "succeeded"
        assert stack.events(task).count("task.succeeded") == 1


def _runs(stack: Stack, handler: str, tasks: Sequence[UUID]) -> list[int]:
    """How often the handler was started for each."""
    return [len(stack.witnessed(handler, task)) for task in tasks]


@one_pair
@pytest.mark.parametrize("forward", [True, False], ids=["committed", "not committed"])
def test_a_finish_whose_commit_was_cut_off_is_recorded_once(stack: Stack, healed: Ground, forward: bool) -> None:
    word = f"cut-{uuid4()}"
    # The payload goes to the worker; only its result goes from it.
    trap = healed.to_postgres.cut_at(word.encode(), forward=forward)
    task = stack.submit("t.echo", {"word": word})
    _each_succeeded(stack, [task])
    assert trap.sprung.is_set()
    assert _runs(stack, "echo", [task]) == [1]


@one_pair
@pytest.mark.parametrize("forward", [True, False], ids=["committed", "not committed"])
def test_a_claim_whose_commit_was_cut_off_is_handed_back_or_made_again(stack: Stack, healed: Ground, forward: bool) -> None:
    # New connections, so that statements travel as text once more.
    healed.to_postgres.cut()
    trap = healed.to_postgres.cut_at(b"hinted AS", forward=forward)
    task = stack.submit("t.echo", {"word": "claimed"})
    _each_succeeded(stack, [task])
    assert trap.sprung.is_set()
    row = stack.task(task)
    assert (row["attempt"], row["lost"]) == (1, 0)
    assert _runs(stack, "echo", [task]) == [1]
    assert ("task.released" in stack.events(task)) == forward == (row["fence"] == 2)


def test_a_broker_that_says_nothing_costs_time_and_no_task(stack: Stack, healed: Ground) -> None:
    before = len(stack.log("dispatcher"))
    healed.to_broker.hang("to_client")
    tasks = [stack.submit("t.echo", {"word": "unconfirmed"}) for _ in range(3)]
    until(lambda: any(word in stack.log("dispatcher")[before:] for word in ("broker_away", "queue_refused")), 30, "a confirmation that never came")
    # What needs no broker goes on.
    expired = stack.submit("t.echo", expires_at="2001-01-01T00:00:00Z")
    assert stack.wait(expired)["status"] == "expired"
    healed.to_broker.cut()
    healed.to_broker.heal()
    _each_succeeded(stack, tasks)
    assert _runs(stack, "echo", tasks) == [1, 1, 1]


def test_queues_that_are_purged_or_deleted_are_filled_again(stack: Stack, healed: Ground) -> None:
    queues = [f"{stack.prefix}.default.{lane}" for lane in ("sync", "async")]
    for harm in (purge, delete, purge, delete):
        tasks = stack.submit_all([("t.echo", {"word": "swept"}, {}), ("t.asleep", {"seconds": 0}, {})] * 10)
        # The worker consumes from them at this moment.
        harm(healed.broker.url, *queues)
        _each_succeeded(stack, tasks)


def test_a_worker_whose_queues_were_made_anew_behind_its_back_hears_of_tasks_again(stack: Stack, healed: Ground) -> None:
    settings = BrokerSettings(url=SecretStr(healed.broker.url), prefix=stack.prefix)
    queues = [broker_queue(settings, "default", lane) for lane in ("sync", "async")]
    for _ in range(2):
        make_anew(healed.broker.url, *queues)
        _each_succeeded(stack, stack.submit_all([("t.echo", {"word": "heard"}, {}), ("t.asleep", {"seconds": 0}, {})] * 10))


def test_a_queue_that_was_made_anew_is_heard_again_whatever_another_one_brings(stack: Stack, healed: Ground) -> None:
    settings = BrokerSettings(url=SecretStr(healed.broker.url), prefix=stack.prefix)
    make_anew(healed.broker.url, broker_queue(settings, "io", "async"))
    unheard = stack.submit("t.aecho", {"word": "heard"})

    def comes() -> bool:
        """Its end, while the same lane of another queue has something to do."""
        stack.wait(stack.submit("t.asleep", {"seconds": 0}), seconds=60)
        return bool(stack.task(unheard)["ended"])

    until(comes, 60, "the end of what the worker did not hear of")
    _each_succeeded(stack, [unheard])


def test_a_message_that_comes_three_times_in_any_order_is_one_run(stack: Stack) -> None:
    settings = Settings(broker=BrokerSettings(url=SecretStr(stack.env["CELERY_BROKER_URL"]), prefix=stack.prefix))
    publisher = Publisher(create_celery(settings), settings.broker)
    tasks = stack.submit_all([("t.echo", {"word": "thrice"}, {})] * 20)
    again = [[Hint(task, "t.echo", 5)] for task in tasks * 3]
    random.Random(3).shuffle(again)
    publisher.publish("default", "sync", again)
    _each_succeeded(stack, tasks)
    publisher.publish("default", "sync", again)
    publisher.close()
    _each_succeeded(stack, [stack.submit("t.echo", {"word": "behind them"})])
    assert {stack.task(task)["fence"] for task in tasks} == {1}
    assert _runs(stack, "echo", tasks) == [1] * 20


@one_pair
@pytest.mark.parametrize("fault", ["killed", "connections terminated", "silent"])
def test_roles_go_on_by_themselves_when_their_database_is_back(stack: Stack, healed: Ground, fault: str) -> None:
    gate = stack.gate()
    running = stack.submit("t.agated", gate.payload())
    stack.wait(running, "running")
    roles = {name: process.pid for name, process in stack.processes.items()}
    if fault == "killed":
        healed.postgres.kill()
        healed.postgres.start()
        stack.engine.dispose()
    elif fault == "connections terminated":
        stack.value("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'taskyard-%'")
    else:
        # As a firewall does that has forgotten them: the connections that there are get no answer any more, for ever.
        healed.to_postgres.hang(new=False)
        # Nobody takes the worker for alive meanwhile: its sign of life comes by the way that its work takes.
        until(lambda: stack.value("SELECT bool_and(beat_at < now() - interval '1 second') FROM workers"), 30, "a worker that looks silent")
        until(lambda: all("database.silent" in stack.log(role) for role in roles), 30, "the end of their waiting")
    gate.open()
    _each_succeeded(stack, [running, stack.submit("t.echo", {"word": "after"}), stack.submit("t.asleep", {"seconds": 0})])
    assert {name: process.pid for name, process in stack.processes.items() if process.poll() is None} == roles


@one_pair
def test_what_a_killed_child_had_started_ends_with_it_while_its_worker_lives(stack: Stack) -> None:
    task = stack.submit("t.grandchild", {"word": "orphan"}, timeout=600)
    grandchild = psutil.Process(int(until(lambda: stack.witnessed("grandchild"))[-1][2]))
    child = grandchild.parent()
    assert child is not None
    child.kill()
    until(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE, 10, "the grandchild's end")
    until(lambda: "task.lost" in stack.events(task))
    stack.cancel(task)
    assert stack.wait(task)["status"] == "cancelled"


@one_pair
def test_a_dispatcher_that_dies_between_commit_and_publish_loses_nothing(stack: Stack) -> None:
    assert stack.stop("dispatcher") == 0
    tasks = stack.submit_all([("t.echo", {"word": "unpublished"}, {})] * 5)
    stack.start("dying", "taskyard", "dispatcher", env={"TASKYARD_FAILPOINTS": "dispatch.committed=exit"})
    assert stack.processes.pop("dying").wait(60) != 0
    assert {stack.task(task)["status"] for task in tasks} == {"queued"}
    stack.start("dispatcher")
    _each_succeeded(stack, tasks)


@one_pair
def test_a_worker_that_is_stopped_while_its_database_says_nothing_ends_all_the_same(stack: Stack, healed: Ground) -> None:
    """And what it ran is another's: the last test here, for it takes the worker away."""
    task = stack.submit("t.asleep", {"seconds": 600}, timeout=600)
    stack.wait(task, "running")
    family = stack.family("worker")
    healed.to_postgres.hang()
    stack.stop("worker", signal.SIGTERM, seconds=60)
    assert [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    healed.to_postgres.cut()
    healed.to_postgres.heal()
    until(lambda: "task.lost" in stack.events(task), 30, "the reaper")
