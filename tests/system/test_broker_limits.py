"""RabbitMQ's limits on consumers and messages bite neither long tasks nor waiting ones, nor those that lose their workers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskyard.dispatch.publisher import SILENCES
from tests import ground as grounds
from tests.ground import TEMPLATE, EmbeddedServer, PrivateRabbitMQ
from tests.stack import Stack, cloned, until

pytestmark = pytest.mark.skipif("rabbitmq" not in grounds.kinds(), reason="RabbitMQ is not installed here")

#: As short for these tasks as half an hour is for one of 45 minutes.
CONSUMER_TIMEOUT = 3
SETTLE_AFTER = "1"


@pytest.fixture(scope="module")
def strict_broker() -> Iterator[PrivateRabbitMQ]:
    """A RabbitMQ that looks every second for consumers that keep a message for too long. It looks every minute else."""
    node = PrivateRabbitMQ(f"consumer_timeout = {CONSUMER_TIMEOUT * 1000}", "{channel_tick_interval, 1000}")
    yield node
    node.close()


@pytest.fixture
def stack(strict_broker: PrivateRabbitMQ, private_postgres: EmbeddedServer, tmp_path: Path) -> Iterator[Stack]:
    with cloned(private_postgres.url, TEMPLATE) as url:
        made = Stack(url, strict_broker.url, tmp_path, TASKYARD_WORKER__PROCESSES="1", TASKYARD_BROKER__SETTLE_AFTER=SETTLE_AFTER)
        yield made
        made.close()


def _up(stack: Stack, **env: str) -> Stack:
    stack.env.update(env)
    stack.start("dispatcher")
    stack.start("worker")
    return stack.ready()


def _bites(broker: PrivateRabbitMQ) -> int:
    """How often the consumer timeout has closed a channel."""
    return broker.log().count("Timeout value used")


def test_the_consumer_timeout_ends_no_long_task_and_none_that_waits_behind_it(strict_broker: PrivateRabbitMQ, stack: Stack) -> None:
    _up(stack)
    nap = {"seconds": CONSUMER_TIMEOUT * 2.5}
    tasks = [stack.submit("t.sleep", nap), stack.submit("t.asleep", nap), stack.submit("t.echo", {"word": "waits"}), stack.submit("t.echo", {"word": "too"})]
    for task in tasks:
        row = stack.wait(task, seconds=40)
        assert (row["status"], row["fence"]) == ("succeeded", 1)
    assert _bites(strict_broker) == 0


def test_the_consumer_timeout_of_this_broker_does_bite(strict_broker: PrivateRabbitMQ, stack: Stack) -> None:
    """Else the test above would prove nothing. Even then no task is lost: the worker consumes anew, and its run goes on."""
    _up(stack, TASKYARD_BROKER__SETTLE_AFTER="600")
    before = _bites(strict_broker)
    task = stack.submit("t.sleep", {"seconds": CONSUMER_TIMEOUT * 3})
    until(lambda: _bites(strict_broker) > before, 30, "the consumer timeout")
    row = stack.wait(task, seconds=40)
    assert (row["status"], row["fence"]) == ("succeeded", 1)
    assert stack.wait(stack.submit("t.echo", {"word": "after"}), seconds=40)["status"] == "succeeded"


def test_a_delivery_limit_drops_no_task(strict_broker: PrivateRabbitMQ, stack: Stack) -> None:
    """RabbitMQ drops a message that came back too often; what it stood for is in line again by then."""
    strict_broker.ctl("set_policy", "limited", f"^{stack.prefix}", '{"delivery-limit": 0}', "--apply-to", "queues")
    _up(stack, TASKYARD_DISPATCH__WORKER_SILENCE="2", TASKYARD_WORKER__HEARTBEAT="0.3", TASKYARD_BROKER__SETTLE_AFTER="600")
    gate = stack.gate()
    task = stack.submit("t.agated", gate.payload())
    until(lambda: stack.witnessed("agated", task), what="its first run")
    stack.stop("worker", signal.SIGKILL)
    stack.start("worker")
    gate.open()
    row = stack.wait(task, seconds=40)
    assert (row["status"], row["lost"]) == ("succeeded", 1)


def test_an_alarm_of_the_broker_costs_time_and_neither_a_queue_nor_a_task(strict_broker: PrivateRabbitMQ, stack: Stack) -> None:
    """RabbitMQ reads nothing from publishers while it is low on memory or disk, and goes on delivering."""
    _up(stack, TASKYARD_BROKER__CONFIRM_TIMEOUT="1")
    stack.wait(stack.submit("t.echo", {"word": "before"}), seconds=40)
    strict_broker.ctl("set_vm_memory_high_watermark", "0.000001")
    try:
        tasks = [stack.submit("t.echo", {"word": "held up"}), stack.submit("t.asleep", {"seconds": 0})]
        # More often than it takes for a silent queue to be replaced.
        until(lambda: stack.log("dispatcher").count("RabbitMQ blocks publishers") > SILENCES, what="the dispatcher's complaint")
    finally:
        strict_broker.ctl("set_vm_memory_high_watermark", "0.4")
    for task in tasks:
        assert stack.wait(task, seconds=40)["status"] == "succeeded"
    assert "broker.queue_replaced" not in stack.log("dispatcher")
