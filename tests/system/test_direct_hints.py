"""A web process tells workers of new tasks itself while their line is open; whatever becomes of such a hint, the task runs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx2
import psycopg
from kombu import Connection, Exchange
from sqlalchemy import make_url

from tests.broker import forget
from tests.ground import free_port
from tests.stack import Stack, until

from .test_stops import is_ready


@contextmanager
def served(stack: Stack, **env: str) -> Iterator[str]:
    """A service that sends direct hints by now; gives its address."""
    port = free_port()
    stack.start("web", "taskyard", "serve", "--port", str(port), env=env)
    try:
        until(lambda: is_ready(port), what="the service")
        url, before = f"http://127.0.0.1:{port}/api/v1", hinted(stack)

        def sends_hints() -> bool:
            stack.wait(post(url), "succeeded")
            return hinted(stack) > before

        # It hears of open lines some seconds after its first announcement.
        until(sends_hints, what="an open line")
        yield url
    finally:
        web = stack.processes.pop("web")
        web.kill()
        web.wait()


def post(url: str) -> UUID:
    answer = httpx2.post(f"{url}/tasks", json={"type": "t.echo", "payload": {"word": "x"}}, timeout=60)
    assert answer.status_code == 201, answer.text
    return UUID(answer.json()["id"])


def hinted(stack: Stack) -> float:
    """Direct hints that services have counted."""
    return float(stack.value("SELECT sum(value) FROM counters WHERE name = 'taskyard_direct_hints_total'") or 0)


def test_an_idle_system_runs_a_task_while_its_dispatcher_stands_still(shared_hard: Stack) -> None:
    with served(shared_hard) as url:
        shared_hard.processes["dispatcher"].send_signal(signal.SIGSTOP)
        try:
            task = shared_hard.wait(post(url), "succeeded")
        finally:
            shared_hard.processes["dispatcher"].send_signal(signal.SIGCONT)
    assert shared_hard.events(task["id"]) == ["task.submitted", "task.started", "task.succeeded"]


def test_dispatchers_are_told_of_a_task_whose_direct_hint_may_be_lost(shared_hard: Stack) -> None:
    # An exchange without queues, where all that is sent is lost.
    elsewhere, broker = f"{shared_hard.prefix}x", shared_hard.env["CELERY_BROKER_URL"]
    with Connection(broker) as connection, connection.channel() as channel:
        Exchange(elsewhere, type="direct", durable=True)(channel).declare()
    database = make_url(shared_hard.env["DATABASE_URL"]).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(database, autocommit=True) as listener, served(shared_hard, TASKYARD_BROKER__PREFIX=elsewhere) as url:
        listener.execute("LISTEN taskyard_ready")
        task = post(url)
        assert next(listener.notifies(timeout=90, stop_after=1)).payload == "?default/sync"
        shared_hard.wait(task, "succeeded")
    forget(broker, elsewhere)


def test_a_service_that_dies_before_it_sends_a_direct_hint_loses_no_task(shared_hard: Stack) -> None:
    port, before = free_port(), shared_hard.value("SELECT count(*) FROM tasks")
    web = shared_hard.start("web", "taskyard", "serve", "--port", str(port), env={"TASKYARD_FAILPOINTS": "hint.unsent=exit@1"})
    until(lambda: is_ready(port), what="the service")
    answered = 0
    while web.poll() is None:
        try:
            shared_hard.wait(post(f"http://127.0.0.1:{port}/api/v1"), "succeeded")
            answered += 1
        except httpx2.HTTPError:
            break
    assert shared_hard.processes.pop("web").wait(60) == 70
    until(lambda: shared_hard.value("SELECT count(*) FROM tasks WHERE status <> 'succeeded'") == 0, what="the end of all tasks")
    assert shared_hard.value("SELECT count(*) FROM tasks") - before in (answered, answered + 1)


def test_while_a_service_has_no_way_to_the_broker_dispatchers_are_told_instead(shared_hard: Stack) -> None:
    with served(shared_hard, CELERY_BROKER_URL="amqp://guest:guest@127.0.0.1:1//") as url:
        until(lambda: "hints.not_sent" in shared_hard.log("web"), what="a hint that could not be sent")
        shared_hard.wait(post(url), "succeeded")
