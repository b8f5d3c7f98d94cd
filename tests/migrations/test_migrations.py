"""The schema goes up, down and up again, and is exactly what the tables say."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.script import Script
from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from taskyard.errors import ConfigurationError
from taskyard.tables import SCHEMA_REVISION, metadata
from taskyard_migrations import runner
from taskyard_migrations.limits import UPGRADE_LOCK

# Everything that makes the schema, as PostgreSQL itself prints it.
CATALOG = """
SELECT 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull::text, a.attgenerated::text || a.attidentity::text,
       pg_get_expr(d.adbin, d.adrelid)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped AND c.relname <> 'taskyard_alembic_version'
UNION ALL
SELECT 'index', c.relname, i.relname, pg_get_indexdef(i.oid), NULL, NULL, NULL
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
WHERE c.relnamespace = 'public'::regnamespace AND c.relname <> 'taskyard_alembic_version'
UNION ALL
SELECT 'constraint', c.relname, k.conname, pg_get_constraintdef(k.oid), NULL, NULL, NULL
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid WHERE c.relnamespace = 'public'::regnamespace AND c.relname <> 'taskyard_alembic_version'
UNION ALL
SELECT 'storage', relname, array_to_string(ARRAY(SELECT unnest(reloptions) ORDER BY 1), ','), NULL, NULL, NULL, NULL
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'taskyard_alembic_version'
UNION ALL
SELECT 'function', proname, prosrc, NULL, NULL, NULL, NULL FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL
SELECT 'trigger', c.relname, tgname, pg_get_triggerdef(t.oid), NULL, NULL, NULL
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE c.relnamespace = 'public'::regnamespace AND NOT t.tgisinternal
"""


def _catalog(connection: Connection) -> set[tuple[str | None, ...]]:
    return {tuple(row) for row in connection.execute(text(CATALOG))}


@pytest.fixture
def empty_url(postgres_url: str) -> Iterator[str]:
    """A database with nothing in it, whose name needs quoting in a URL."""
    name = f"ty_m%{uuid.uuid4().hex[:8]}"
    admin = create_engine(make_url(postgres_url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"'.replace("%", "%%"), ())
        yield make_url(postgres_url).set(database=name, drivername="postgresql+asyncpg").render_as_string(hide_password=False)
        connection.exec_driver_sql(f'DROP DATABASE "{name}" WITH (FORCE)'.replace("%", "%%"), ())


@pytest.fixture
def empty(empty_url: str) -> Engine:
    return create_engine(make_url(empty_url).set(drivername="postgresql+psycopg"), poolclass=NullPool)


def test_the_schema_goes_up_down_to_nothing_and_up_again(empty_url: str, empty: Engine) -> None:
    assert runner.current(empty_url) is None
    runner.upgrade(empty_url)
    assert runner.current(empty_url) == runner.head()
    with empty.connect() as connection:
        first = _catalog(connection)
    runner.downgrade(empty_url, "base")
    with empty.connect() as connection:
        assert _catalog(connection) == set()
    runner.upgrade(empty_url)
    with empty.connect() as connection:
        assert _catalog(connection) == first


def test_migrations_make_exactly_what_the_tables_say(engine: Engine, empty: Engine) -> None:
    with empty.begin() as connection:
        metadata.create_all(connection)
        by_tables = _catalog(connection)
    with engine.connect() as connection:
        by_migrations = _catalog(connection)
    assert by_migrations - by_tables == set(), "only the migrations make these"
    assert by_tables - by_migrations == set(), "the migrations lack these"


def test_autogenerate_finds_nothing_to_do_after_an_upgrade(database_url: str) -> None:
    command.check(runner.config(database_url))


def test_autogenerate_sees_a_changed_check_and_a_changed_index(database_url: str, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE tasks DROP CONSTRAINT ck_tasks_lane"))
        connection.execute(text("DROP INDEX ix_tasks_line"))
    with pytest.raises(Exception, match=r"ix_tasks_line.*ck_tasks_lane|ck_tasks_lane.*ix_tasks_line"):
        command.check(runner.config(database_url))


def test_the_tables_know_the_newest_revision() -> None:
    assert runner.head() == SCHEMA_REVISION


def test_two_upgraders_do_not_race(empty_url: str) -> None:
    call = [sys.executable, "-c", "import sys; from taskyard_migrations.runner import upgrade; upgrade(sys.argv[1])", empty_url]
    upgraders = [subprocess.Popen(call) for _ in range(3)]
    assert [upgrader.wait(60) for upgrader in upgraders] == [0, 0, 0]
    assert runner.current(empty_url) == runner.head()


def test_an_upgrader_lets_go_of_its_lock(empty_url: str, empty: Engine) -> None:
    runner.upgrade(empty_url)
    with empty.connect() as connection:
        assert connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": UPGRADE_LOCK}).scalar_one()


def test_a_migration_gives_up_on_a_lock_that_others_hold(database_url: str, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE tasks IN ACCESS SHARE MODE"))
        with pytest.raises(OperationalError, match="lock timeout"):
            runner.downgrade(database_url, "base", lock_timeout="100ms")
    assert runner.current(database_url) == runner.head(), "what failed changed nothing"


def test_only_postgresql_is_taken() -> None:
    with pytest.raises(ConfigurationError, match="needs PostgreSQL"):
        runner.upgrade("sqlite:///tasks.db")


def test_revision_ids_are_ordered_and_each_is_named_by_its_file() -> None:
    for path in (runner.FOLDER / "versions").glob("*.py"):
        assert path.name.split("_")[0].isdigit(), path
    assert runner.next_id() > runner.head()


def test_versions_ride_in_the_package() -> None:
    assert Path(runner.FOLDER, "versions").is_dir()
    assert Path(runner.FOLDER, "script.py.mako").is_file()


def test_a_revision_that_alembic_itself_makes_gets_the_next_number(empty_url: str, tmp_path: Path) -> None:
    runner.upgrade(empty_url)
    config = runner.config(empty_url)
    config.set_main_option("version_locations", f"{runner.FOLDER / 'versions'}\n{tmp_path}".replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    made = command.revision(config, "something new", autogenerate=True, version_path=str(tmp_path))
    assert isinstance(made, Script)
    assert made.revision == f"{int(runner.head()) + 1:04d}"
