"""A transaction that PostgreSQL has undone once is made again by whoever makes it, and nobody notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from taskyard.dispatch.app import create_celery
from taskyard.dispatch.dispatcher import Dispatcher
from taskyard.dispatch.publisher import Publisher
from taskyard.replay import replay
from taskyard.routes import sync_routes
from taskyard.settings import RetentionSettings, Route, Settings

from .life import Life
from .test_retention import age


@contextmanager
def undone_once(life: Life, table: str, act: str) -> Iterator[None]:
    """The first statement that does this to a row of the table ends in a deadlock. Sequences do not go back with a transaction."""
    life.execute("CREATE SEQUENCE met")
    body = "BEGIN IF nextval('met') = 1 THEN RAISE 'met' USING ERRCODE = '40P01'; END IF; RETURN COALESCE(NEW, OLD); END"
    life.execute(f"CREATE FUNCTION meet() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$")
    life.execute(f"CREATE TRIGGER meet BEFORE {act} ON {table} FOR EACH ROW EXECUTE FUNCTION meet()")
    try:
        yield
    finally:
        life.execute("DROP FUNCTION meet CASCADE")
        life.execute("DROP SEQUENCE met")


@contextmanager
def _dispatcher(life: Life, settings: Settings) -> Iterator[Dispatcher]:
    kept = settings.model_copy(update={"retention": RetentionSettings(expired=60.0, failed=60.0)})
    made = Dispatcher(kept, life.engine, Publisher(create_celery(kept), kept.broker))
    yield made
    made.stop()
    made.run()


def _replay(life: Life, _settings: Settings) -> None:
    life.submit()
    with life.engine.begin() as connection:
        sync_routes(connection, [Route(name="new", notifier="log", events=("task.submitted",))])
    assert [step.sent for step in replay(life.engine, "new", datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))] == [1]


def _purge_keys(life: Life, settings: Settings) -> None:
    life.execute("INSERT INTO idempotency_keys (namespace, key, fingerprint, task_ids, created_at) VALUES ('default', 'k', '', '{}', '2020-01-01Z')")
    with _dispatcher(life, settings) as dispatcher:
        dispatcher._purge()
    assert life.column("SELECT count(*) FROM idempotency_keys") == [0]


def _purge_tasks(life: Life, settings: Settings) -> None:
    age(life, life.in_status("expired"))
    with _dispatcher(life, settings) as dispatcher:
        dispatcher._purge()
    assert life.column("SELECT count(*) FROM tasks") == [0]


def _beat(life: Life, settings: Settings) -> None:
    with _dispatcher(life, settings) as dispatcher:
        dispatcher._presence.beat()
        assert life.column("SELECT count(*) FROM dispatchers") == [1]


@pytest.mark.parametrize(
    ("table", "act", "work"),
    [
        ("deliveries", "INSERT", _replay),
        ("idempotency_keys", "DELETE", _purge_keys),
        ("tasks", "DELETE", _purge_tasks),
        ("dispatchers", "INSERT", _beat),
    ],
)
def test_what_a_deadlock_has_undone_is_done_again(life: Life, settings: Settings, table: str, act: str, work: Callable[[Life, Settings], None]) -> None:
    with undone_once(life, table, act), capture_logs() as lines:
        work(life, settings)
    assert [line["sqlstate"] for line in lines if line["event"] == "transaction.repeated"] == ["40P01"]
