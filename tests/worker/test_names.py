"""One name, one worker: a second one is refused with a sentence, and a name is free again as soon as nobody has it."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest
from kombu import Connection, Queue
from pydantic import SecretStr
from sqlalchemy import Engine, text

from taskyard.database import connect
from taskyard.dispatch.app import create_celery
from taskyard.errors import ConfigurationError, TaskyardError
from taskyard.settings import DatabaseSettings, DispatchSettings, Settings, WorkerSettings
from taskyard_worker import name_lock
from taskyard_worker.name_lock import NameLock, await_control_queue
from taskyard_worker.names import full_name
from tests.stack import Stack, until

HOST = socket.gethostname()
NAME = "w1@ops"


# --- what is a name ---


@pytest.mark.parametrize(("given", "name"), [("w1", f"w1@{HOST}"), ("w1@ops", "w1@ops"), ("w_1.a-b@%h", f"w_1.a-b@{HOST}"), ("1", f"1@{HOST}")])
def test_a_name_gets_its_host_unless_it_has_one(given: str, name: str) -> None:
    assert full_name(given) == name


def test_workers_without_a_name_have_names_that_differ() -> None:
    assert len({full_name(None) for _ in range(10)}) == 10


@pytest.mark.parametrize("given", ["", "@ops", "w1@", "w 1", "w1@a@b", "w/1", "w*", "w#1", "ä", "w\n", "w\x00", "-w", "%x", "w%", "w" * 201])
def test_what_can_be_no_name_is_refused_with_a_sentence(given: str) -> None:
    with pytest.raises(ConfigurationError, match="can't be a worker's name: expected letters"):
        full_name(given)


# --- who has a name ---


@pytest.fixture
def quick(settings: Settings) -> Settings:
    return settings.model_copy(update={"dispatch": DispatchSettings(worker_silence=1.0), "worker": WorkerSettings(heartbeat=0.05)})


@contextmanager
def _taken(settings: Settings) -> Iterator[NameLock]:
    lock = NameLock(settings, NAME)
    lock.take()
    yield lock
    lock.release()


def _row(engine: Engine, silent: float = 0.0) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO workers (id, name, queues, host, beat_at) VALUES (gen_random_uuid(), :name, '{}', 'ops', now() - :silent * interval '1 second')"),
            {"name": NAME, "silent": silent},
        )


def test_a_name_whose_worker_beats_is_refused_and_another_is_free(settings: Settings, engine: Engine) -> None:
    _row(engine)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.05):
            with engine.begin() as connection:
                connection.execute(text("UPDATE workers SET beat_at = now()"))

    beating = threading.Thread(target=beat)
    with _taken(settings):
        beating.start()
        try:
            with pytest.raises(TaskyardError, match=r"Another worker named w1@ops runs on ops \(its heartbeat came 0 s ago\). Give each worker a name"):
                NameLock(settings, NAME).take()
        finally:
            over.set()
            beating.join()
        other = NameLock(settings, "w2@ops")
        other.take()
        other.release()
    with _taken(settings):
        pass


def test_a_worker_that_is_starting_has_its_name_already(quick: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_lock.Holder, "is_gone", lambda *_: False)
    with _taken(quick), pytest.raises(TaskyardError, match=r"\(it is starting\)"):
        NameLock(quick, NAME).take()


@pytest.mark.parametrize("silent", [None, 5.0], ids=["given up", "silent"])
def test_the_name_of_a_worker_whose_host_vanished_is_free_once_its_heart_is_silent(quick: Settings, engine: Engine, silent: float | None) -> None:
    if silent is not None:
        _row(engine, silent)
    vanished = NameLock(quick, NAME)
    vanished.take()
    with _taken(quick):
        assert vanished._connection is not None
        with pytest.raises(psycopg.OperationalError):
            vanished._connection.execute("SELECT 1")


def test_a_lost_connection_takes_the_name_again_even_if_the_server_has_not_noticed(settings: Settings) -> None:
    with _taken(settings) as lock:
        lost = lock._connection
        lock._connection = None
        lock.take()
        assert lost is not None
        with pytest.raises(psycopg.OperationalError):
            lost.execute("SELECT 1")


def test_a_worker_whose_name_another_one_took_meanwhile_hears_of_it(settings: Settings, engine: Engine) -> None:
    quick = settings.model_copy(update={"worker": WorkerSettings(heartbeat=0.05)})
    heard = threading.Event()
    lock = NameLock(quick, NAME)
    lock.take()
    lock.keep(lambda: name_lock.NOBODY, heard.set)
    _row(engine)
    with closing(connect(quick.database, role="test")) as other:

        def took() -> bool:
            if lock._connection is not None:
                other.execute("SELECT pg_terminate_backend(%s)", (lock._connection.info.backend_pid,))
            return bool(other.execute("SELECT pg_try_advisory_lock(%s)", (lock._key,)).fetchone()[0])  # type: ignore[index]

        def beats_and_was_heard() -> bool:
            other.execute("UPDATE workers SET beat_at = now()")
            return heard.is_set()

        until(took)
        until(beats_and_was_heard)
    lock.release()


def test_a_workers_own_heartbeat_does_not_keep_its_name_from_it(quick: Settings, engine: Engine) -> None:
    """Its predecessor's connection was still there when it started, as behind a network that swallows packets."""
    stale = NameLock(quick, NAME)
    stale.take()
    _row(engine)
    with engine.begin() as connection:
        own = connection.execute(text("SELECT id FROM workers")).scalar_one()
    lock = NameLock(quick, NAME)
    stopped = threading.Event()
    lock.keep(lambda: own, stopped.set)

    def beats_and_has_its_name() -> bool:
        with engine.begin() as connection:
            connection.execute(text("UPDATE workers SET beat_at = now()"))
        return lock._held

    until(beats_and_has_its_name)
    assert not stopped.is_set()
    lock.release()
    stale.release()


def test_while_the_database_is_away_a_worker_starts_and_takes_its_name_later(settings: Settings) -> None:
    away = settings.model_copy(update={"database": DatabaseSettings(url=SecretStr("postgresql://x@127.0.0.1:1/x"))})
    with _taken(away) as lock:
        assert lock._connection is None


def test_a_broker_that_has_a_connection_of_this_name_is_waited_for_and_then_refused(
    settings: Settings, broker_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broker_kind != "server":
        pytest.skip("only RabbitMQ gives a queue to one connection alone")
    app = create_celery(settings)
    name = f"{settings.broker.prefix}@ops"
    await_control_queue(app, name)
    monkeypatch.setattr(name_lock, "BROKER_FORGETS", 0.5)
    with Connection(app.conf.broker_url) as connection:
        Queue(f"{name}.celery.pidbox", channel=connection.default_channel, exclusive=True, auto_delete=True).declare()
        with pytest.raises(TaskyardError, match="is connected to this broker, with another database"):
            await_control_queue(app, name)
    await_control_queue(app, name)


# --- whole workers ---


@pytest.mark.parametrize("by", ["taskyard", "celery"])
def test_a_second_worker_of_a_name_is_refused_with_a_sentence_and_the_first_works_on(own_stack: Stack, by: str) -> None:
    stack = own_stack
    stack.start("dispatcher")
    stack.start("worker", "taskyard", "worker", "--name", NAME)
    stack.ready()
    second = {
        "taskyard": ("taskyard", "worker", "--name", NAME),
        "celery": ("celery", "-A", "taskyard_worker", "worker", "-n", NAME),
    }[by]
    assert stack.start("second", *second).wait(60) == 1
    said = stack.log("second")
    assert f"Another worker named {NAME} runs on {HOST}" in said
    assert "Traceback" not in said
    del stack.processes["second"]
    assert stack.wait(stack.submit("t.echo"))["status"] == "succeeded"
    assert stack.workers() == 1


def test_a_killed_worker_is_started_again_with_its_name_long_before_it_counts_as_lost(own_stack: Stack) -> None:
    stack = own_stack
    stack.env["TASKYARD_DISPATCH__WORKER_SILENCE"] = "600"
    stack.start("dispatcher")
    for number in (1, 2):
        stack.start("worker", "taskyard", "worker", "--name", NAME)
        stack.ready(number)
        if number == 1:
            stack.stop("worker", signal.SIGKILL)
    assert stack.wait(stack.submit("t.echo"))["status"] == "succeeded"
    assert stack.stop("worker") == 0


def test_a_name_that_is_none_is_a_sentence(own_stack: Stack) -> None:
    assert own_stack.start("worker", "taskyard", "worker", "--name", "a b").wait(60) == 1
    del own_stack.processes["worker"]
    said = own_stack.log("worker")
    assert "'a b' can't be a worker's name" in said
    assert "Traceback" not in said
