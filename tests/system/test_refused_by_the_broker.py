"""What the broker refuses (a queue with other arguments, missing rights, a wrong password) is named, holds up nothing else, and works once it is mended."""

from __future__ import annotations

from typing import Any

import pytest
from kombu import Connection
from sqlalchemy import make_url

from tests.ground import Ground, PrivateRabbitMQ, delete, has_rabbitmq
from tests.stack import Stack, until

pytestmark = [
    pytest.mark.skipif(not has_rabbitmq(), reason="RabbitMQ is not installed here"),
    pytest.mark.parametrize("ground_kind", ["rabbitmq"], indirect=True),
]

LOST = "Connection to broker lost"


def declare(stack: Stack, name: str, **arguments: Any) -> str:
    """Declare one of the stack's broker queues with arguments of one's own. Answers its whole name."""
    queue = f"{stack.prefix}.{name}"
    with Connection(stack.env["CELERY_BROKER_URL"]) as connection, connection.channel() as channel:
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
    return queue


def start(stack: Stack, **env: str) -> None:
    """A dispatcher, and a worker with some settings of its own that serves two queues."""
    stack.start("dispatcher")
    stack.start("worker", env={"TASKYARD_WORKER__QUEUES": "default,slow", **env})
    stack.ready()


def runs(stack: Stack, queue: str, type_: str = "t.echo") -> bool:
    """Does a task of this queue come to its end?"""
    return bool(stack.wait(stack.submit(type_, {"word": "x"}, queue=queue), seconds=60)["status"] == "succeeded")


def as_user(stack: Stack, name: str, password: str) -> str:
    """The broker's URL for another user."""
    return make_url(stack.env["CELERY_BROKER_URL"]).set(username=name, password=password).render_as_string(hide_password=False)


@pytest.mark.parametrize("name", ["slow.sync", "slow.async", "deliveries"])
def test_a_queue_with_other_arguments_is_named_and_the_others_are_served(hard: Stack, name: str) -> None:
    refused = declare(hard, name, **{"x-max-priority": 10})
    start(hard)
    until(lambda: f"queue {refused}: PRECONDITION_FAILED - inequivalent arg" in hard.log("worker"), 60, "the refusal")
    assert runs(hard, "default")
    assert runs(hard, "default", "t.aecho")
    waiting = hard.submit("t.aecho" if name.endswith("async") else "t.echo", {"word": "x"}, queue="slow")
    assert LOST not in hard.log("worker"), "its connection is good"
    assert "delete it (its messages are hints" in hard.log("worker")
    delete(hard.env["CELERY_BROKER_URL"], refused)
    until(lambda: "worker.queue_works_again" in hard.log("worker"), 60, "the mended queue")
    assert hard.wait(waiting, seconds=60)["status"] == "succeeded"


def test_a_user_without_rights_to_read_one_queue_serves_the_others_until_it_has_them(hard: Stack, healed: Ground) -> None:
    assert isinstance(healed.broker, PrivateRabbitMQ)
    user, own = f"u{hard.prefix}", f"^{hard.prefix}"
    healed.broker.ctl("add_user", user, "right")
    # Celery's own names are not among those that it may use, either.
    healed.broker.ctl("set_permissions", user, own, own, rf"^{hard.prefix}(?!\.slow\.sync).*$")
    start(hard, CELERY_BROKER_URL=as_user(hard, user, "right"))
    assert runs(hard, "default")
    assert runs(hard, "slow", "t.aecho"), "the async lane of the same queue"
    until(lambda: f"queue {hard.prefix}.slow.sync: ACCESS_REFUSED" in hard.log("worker"), 60, "the refusal")
    assert "worker.no_remote_control" in hard.log("worker")
    assert hard.log("worker").count(LOST) <= 1, "only the first try to consume costs the connection"
    waiting = hard.submit("t.echo", {"word": "x"}, queue="slow")
    healed.broker.ctl("set_permissions", user, own, own, own)
    assert hard.wait(waiting, seconds=60)["status"] == "succeeded"


def test_a_worker_with_a_wrong_password_says_so_and_waits_for_the_right_one(hard: Stack, healed: Ground) -> None:
    assert isinstance(healed.broker, PrivateRabbitMQ)
    user = f"u{hard.prefix}"
    healed.broker.ctl("add_user", user, "other")
    healed.broker.ctl("set_permissions", user, ".*", ".*", ".*")
    start(hard, CELERY_BROKER_URL=as_user(hard, user, "secret"))
    until(lambda: hard.log("worker").count("worker.broker_refuses") >= 3, 60, "three refusals")
    said = hard.log("worker")
    assert "ACCESS_REFUSED" in said
    assert "Correct the user and password" in said
    assert "secret" not in said
    healed.broker.ctl("change_password", user, "secret")
    assert runs(hard, "default")
    assert hard.stop("worker") == 0
