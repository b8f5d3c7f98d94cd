"""Submitting in the caller's own transaction: the task is there if it commits, and never was if it does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pluggy
import psycopg
import pytest
from pydantic import BaseModel
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import taskyard
from taskyard import ConfigurationError, InvalidInput, UniqueConflict, UnknownTaskType, handler, hookspecs
from taskyard.errors import Unavailable
from taskyard.plugins import Plugin, Registry

from .life import Life

EXAMPLE = Path(__file__).parents[2] / "examples" / "orders.py"


class Letter(BaseModel):
    to: str
    copies: int = 1


@handler("letters.send", queue="post", priority=6, timeout=20)
async def send(payload: Letter) -> None:
    """Send a letter."""


@pytest.fixture(scope="module")
def registry() -> Registry:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return Registry([Plugin("letters", "letters", "1", handlers=[send.owned_by("letters")])], manager)


@pytest.fixture
async def async_engine(life: Life) -> AsyncIterator[AsyncEngine]:
    made = create_async_engine(life.engine.url.set(drivername="postgresql+asyncpg"))
    yield made
    await made.dispose()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def tasks(life: Life) -> list[Any]:
    return life.column("SELECT id FROM tasks ORDER BY id")


@pytest.mark.parametrize("kind", ["connection", "session"])
def test_a_task_is_there_when_its_transaction_commits_and_never_was_when_it_does_not(life: Life, registry: Registry, kind: str) -> None:
    with Session(life.engine) if kind == "session" else life.engine.connect() as given:
        task = taskyard.submit(given, send, Letter(to="Ada"), registry=registry, tags=["x"], metadata={"a": 1}, delay=60)
        assert tasks(life) == []
        given.commit()
        assert tasks(life) == [task.id]
        taskyard.submit(given, "letters.send", {"to": "Bob"}, registry=registry)
        given.rollback()
    assert tasks(life) == [task.id]
    row = life.row(task.id)
    assert (row["queue"], row["lane"], row["priority"], row["timeout"], row["payload"]) == ("post", "async", 6, 20.0, {"to": "Ada", "copies": 1})
    for name in ("id", "namespace", "type", "status", "queue", "priority", "run_at", "created_at", "metadata", "unique_key"):
        assert getattr(task, name) == row[name], name
    assert (task.status, task.tags) == ("scheduled", ("x",))
    assert life.event_types(task.id) == ["submitted"]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["connection", "session"])
async def test_the_async_form_takes_part_in_the_callers_transaction_too(life: Life, registry: Registry, async_engine: AsyncEngine, kind: str) -> None:
    async with AsyncSession(async_engine) if kind == "session" else async_engine.connect() as given:
        task = await taskyard.submit_async(given, send, Letter(to="Ada"), registry=registry, unique_key="one")
        assert tasks(life) == []
        await given.commit()
        with pytest.raises(UniqueConflict, match=str(task.id)):
            await taskyard.submit_async(given, send, Letter(to="Ada"), registry=registry, unique_key="one")
        await taskyard.submit_async(given, send, Letter(to="Bob"), registry=registry)
        await given.rollback()
    assert tasks(life) == [task.id]


def test_a_savepoint_that_is_rolled_back_takes_its_task_with_it(life: Life, registry: Registry) -> None:
    with life.engine.begin() as connection:
        kept = taskyard.submit(connection, send, Letter(to="Ada"), registry=registry)
        with connection.begin_nested() as savepoint:
            taskyard.submit(connection, send, Letter(to="Bob"), registry=registry)
            savepoint.rollback()
    assert tasks(life) == [kept.id]


def test_what_rest_would_refuse_is_refused_with_the_same_places(life: Life, registry: Registry) -> None:
    with life.engine.begin() as connection:
        with pytest.raises(UnknownTaskType, match=r"letters\.send"):
            taskyard.submit(connection, "letters.sent", {}, registry=registry)
        with pytest.raises(InvalidInput) as refused:
            taskyard.submit(connection, send, {"copies": "many"}, registry=registry, priority=11)  # type: ignore[misc]  # as code without types may
        assert {pointer for pointer, _ in refused.value.problems} == {"/payload/to", "/payload/copies", "/priority"}
        with pytest.raises(InvalidInput) as naive:
            taskyard.submit(connection, send, Letter(to="Ada"), registry=registry, run_at=datetime(2030, 1, 1))
        assert naive.value.problems[0][0] == "/run_at"
        aware = taskyard.submit(connection, send, Letter(to="Ada"), registry=registry, run_at=datetime(2030, 1, 1, tzinfo=UTC), tags=("a", "b"))
    assert life.row(aware.id)["run_at"] == datetime(2030, 1, 1, tzinfo=UTC)
    assert tasks(life) == [aware.id]


def test_a_unique_key_that_is_taken_is_told_and_the_transaction_goes_on(life: Life, registry: Registry) -> None:
    with life.engine.begin() as connection:
        first = taskyard.submit(connection, send, Letter(to="Ada"), registry=registry, unique_key="ada")
        elsewhere = taskyard.submit(connection, send, Letter(to="Ada"), registry=registry, unique_key="ada", namespace="other")
        with pytest.raises(UniqueConflict) as refused:
            taskyard.submit(connection, send, Letter(to="Ada"), registry=registry, unique_key="ada")
        assert refused.value.task_id == str(first.id)
        after = taskyard.submit(connection, send, Letter(to="Bob"), registry=registry)
    assert tasks(life) == [first.id, elsewhere.id, after.id]


@pytest.mark.parametrize("options", [{}, {"unique_key": "ada"}])
def test_a_trigger_that_keeps_the_task_out_is_named_and_the_transaction_goes_on(life: Life, registry: Registry, options: dict[str, Any]) -> None:
    with life.engine.connect() as connection:
        connection.execute(text("CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"))
        connection.execute(text("CREATE TRIGGER keep_out BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION keep_out()"))
        with pytest.raises(Unavailable, match="trigger keep_out on tasks"):
            taskyard.submit(connection, send, Letter(to="Ada"), registry=registry, **options)
        connection.execute(text("DROP TRIGGER keep_out ON tasks"))
        submitted = taskyard.submit(connection, send, Letter(to="Ada"), registry=registry, **options)
        assert connection.execute(text("SELECT id FROM tasks")).scalar_one() == submitted.id
        connection.rollback()


def test_the_commit_wakes_the_dispatchers_and_nothing_before_it_does(life: Life, registry: Registry) -> None:
    with psycopg.connect(life.engine.url.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True) as listening:
        listening.execute("LISTEN taskyard_ready")
        with life.engine.connect() as connection:
            taskyard.submit(connection, send, Letter(to="Ada"), registry=registry)
            connection.rollback()
            taskyard.submit(connection, send, Letter(to="Ada"), registry=registry, wake=False)
            connection.commit()
            taskyard.submit(connection, send, Letter(to="Ada"), registry=registry, queue="last")
            connection.commit()
        assert [note.payload for note in listening.notifies(timeout=60, stop_after=1)] == ["last/async"]


def test_another_kind_of_database_is_refused(registry: Registry) -> None:
    with create_engine("sqlite://").connect() as connection, pytest.raises(ConfigurationError, match="not to sqlite"):
        taskyard.submit(connection, send, Letter(to="Ada"), registry=registry)


def test_importing_taskyard_imports_no_sqlalchemy_and_loads_no_plugin() -> None:
    code = "import sys, taskyard; print([n for n in sys.modules if n.startswith(('sqlalchemy', 'taskyard.plugins', 'taskyard_demo'))])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_the_example_takes_orders_with_the_installed_plugins_all_or_nothing(database_url: str, engine: Engine, tmp_path: Path) -> None:
    run = [sys.executable, str(EXAMPLE), "3", "0", "14"]
    done = subprocess.run(run, env={"DATABASE_URL": database_url, "PATH": ""}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, refused, last = done.stdout.splitlines()
    assert refused == "0 pieces: refused"
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT t.id, t.payload, t.priority FROM tasks t JOIN orders o ON o.task_id = t.id ORDER BY o.id")).all()
        assert connection.execute(text("SELECT count(*) FROM tasks")).scalar() == 2
    assert [line.rsplit(" ", 1)[1] for line in (first, last)] == [str(row.id) for row in rows]
    assert [(row.payload, row.priority) for row in rows] == [({"text": "3 pieces, packed"}, 7), ({"text": "14 pieces, packed"}, 7)]
