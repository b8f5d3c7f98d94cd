"""Taskyard shares a database with other Alembic projects, and with tables that are not its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, inspect, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from taskyard.database_check import check_database
from taskyard.errors import ConfigurationError
from taskyard.queries import schema_revision
from taskyard.settings import DatabaseSettings
from taskyard.tables import metadata
from taskyard_migrations import runner
from taskyard_migrations.ownership import MOVED
from tests.databases import admin_engine, cloned

ENV = """
from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool
with create_engine(context.config.attributes["url"], poolclass=NullPool).connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
REVISION = """
from alembic import op
revision, down_revision = "{number:04d}", {before}
def upgrade(): op.execute("CREATE TABLE shop_{number} (id int)")
def downgrade(): op.execute("DROP TABLE shop_{number}")
"""


class Shop:
    """Another project, whose revisions are named as ours are: 0001 to 0012."""

    def __init__(self, folder: Path, url: str) -> None:
        (folder / "versions").mkdir(parents=True)
        (folder / "env.py").write_text(ENV)
        for number in range(1, 13):
            before = repr(f"{number - 1:04d}") if number > 1 else None
            (folder / "versions" / f"{number:04d}.py").write_text(REVISION.format(number=number, before=before))
        self.config = Config()
        self.config.set_main_option("script_location", str(folder))
        self.config.attributes["url"] = make_url(url).set(drivername="postgresql+psycopg")

    def upgrade(self) -> None:
        command.upgrade(self.config, "head")


@pytest.fixture
def url(postgres_url: str) -> Iterator[str]:
    """An empty database."""
    with cloned(postgres_url) as made:
        yield made


@pytest.fixture
def database(url: str) -> Iterator[Engine]:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    yield engine
    engine.dispose()


def versions(database: Engine, table: str) -> list[str]:
    with database.connect() as connection:
        return list(connection.execute(text(f"SELECT version_num FROM {table}")).scalars())


def tables(database: Engine) -> set[str]:
    return set(inspect(database).get_table_names())


def taskyard(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "DATABASE_URL": url}
    return subprocess.run([sys.executable, "-m", "taskyard", *arguments], env=environment, capture_output=True, text=True, timeout=100)


# --- beside another Alembic project ---


@pytest.mark.parametrize("first", ["shop", "taskyard"])
def test_two_projects_with_the_same_revisions_know_nothing_of_each_other(url: str, database: Engine, tmp_path: Path, first: str) -> None:
    shop = Shop(tmp_path / "shop", url)
    if first == "shop":
        shop.upgrade()
    runner.upgrade(url)
    if first == "taskyard":
        shop.upgrade()
    assert {"shop_1", "shop_12", "tasks", "events"} <= tables(database)
    assert versions(database, "alembic_version") == ["0012"]
    assert versions(database, "taskyard_alembic_version") == [runner.head()]
    assert runner.current(url) == runner.head()
    command.check(runner.config(url))
    runner.downgrade(url, "base")
    assert runner.current(url) is None
    assert tables(database) & set(metadata.tables) == set()
    assert {"shop_1", "shop_12"} <= tables(database)
    assert versions(database, "alembic_version") == ["0012"]


@pytest.mark.parametrize("foreign", ["a1b2c3d4e5f6", "0005", "9999"])
def test_the_revision_of_another_project_is_left_alone(url: str, database: Engine, foreign: str) -> None:
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)"))
        connection.execute(text("INSERT INTO alembic_version VALUES (:foreign)"), {"foreign": foreign})
    before = taskyard(url, "db", "current")
    assert (before.returncode, before.stdout) == (1, f"no schema (newest is {runner.head()})\n")
    done = taskyard(url, "db", "upgrade")
    assert done.returncode == 0, done.stderr
    assert "newer" not in done.stderr
    assert set(metadata.tables) <= tables(database)
    assert versions(database, "alembic_version") == [foreign]
    assert taskyard(url, "db", "current").stdout == f"{runner.head()} (newest)\n"


def test_autogenerate_proposes_to_drop_no_table_of_others(url: str, database: Engine, tmp_path: Path) -> None:
    runner.upgrade(url)
    Shop(tmp_path / "shop", url).upgrade()
    config = runner.config(url)
    config.set_main_option("version_locations", f"{runner.FOLDER / 'versions'}\n{tmp_path}".replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    command.revision(config, "nothing new", autogenerate=True, version_path=str(tmp_path))
    made = next(tmp_path.glob("*.py")).read_text()
    assert "shop_" not in made
    assert "alembic_version" not in made


# --- an installation of an early version ---


def make_early(database: Engine, revision: str) -> None:
    """Bring a migrated database into the layout of the versions that kept their revision in ``alembic_version``."""
    with database.begin() as connection:
        connection.execute(text("DROP TABLE taskyard_alembic_version"))
        connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)"))
        connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": revision})


@pytest.mark.parametrize("at", ["0001", "0010"])
def test_an_installation_of_an_early_version_is_upgraded_and_its_revision_moves(url: str, database: Engine, at: str) -> None:
    runner.upgrade(url, at)
    make_early(database, at)
    assert runner.current(url) == at
    with database.connect() as connection:
        assert schema_revision(connection) == at, "readiness reads it as well"
    runner.upgrade(url)
    assert versions(database, "taskyard_alembic_version") == [runner.head()]
    assert versions(database, "alembic_version") == [MOVED]
    runner.upgrade(url)
    runner.downgrade(url, "-1")
    assert runner.current(url) == f"{int(runner.head()) - 1:04d}"


def test_processes_of_the_early_version_take_what_is_left_for_a_later_revision_and_go_on_working(url: str, database: Engine) -> None:
    runner.upgrade(url, "0010")
    make_early(database, "0010")
    runner.upgrade(url)
    assert MOVED >= "0010", "what their readiness asks"
    assert len(MOVED) <= 32, "what Alembic's column holds"


def test_another_project_that_comes_after_an_early_version_is_told_and_does_not_take_our_revision_for_its_own(
    url: str, database: Engine, tmp_path: Path
) -> None:
    runner.upgrade(url, "0010")
    make_early(database, "0010")
    runner.upgrade(url)
    shop = Shop(tmp_path / "shop", url)
    with pytest.raises(Exception, match=f"Can't locate revision identified by '{MOVED}'"):
        shop.upgrade()
    with database.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    shop.upgrade()
    assert {"shop_1", "shop_12", "tasks"} <= tables(database)
    assert runner.current(url) == runner.head()


def test_an_early_upgrade_that_was_undone_can_be_tried_again(url: str, database: Engine) -> None:
    runner.upgrade(url, "0010")
    make_early(database, "0010")
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE dispatchers (id int)"))
    with pytest.raises(DBAPIError):
        runner.upgrade(url)
    assert runner.current(url) == "0010"
    with database.begin() as connection:
        connection.execute(text("DROP TABLE dispatchers"))
    runner.upgrade(url)
    assert runner.current(url) == runner.head()


# --- tables of others ---


@pytest.mark.parametrize(
    "made",
    [
        "CREATE TABLE tasks (id int)",
        "CREATE TABLE events (id int)",
        "CREATE VIEW queues AS SELECT 1",
        "CREATE TABLE shop (id int); CREATE INDEX ix_tasks_line ON shop (id)",
    ],
)
def test_names_that_others_have_taken_are_refused_before_anything_is_made(url: str, database: Engine, made: str) -> None:
    with database.begin() as connection:
        for statement in made.split(";"):
            connection.execute(text(statement))
    before = tables(database)
    run = taskyard(url, "db", "upgrade")
    assert run.returncode == 1
    assert "not from Taskyard's migrations: nothing was made" in run.stderr
    assert "Traceback" not in run.stderr
    assert tables(database) == before


def test_the_revision_of_ours_with_the_tables_of_others_is_not_taken_over(url: str, database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE tasks (id int)"))
        connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('0005')"))
    with pytest.raises(Exception, match="has tasks already"):
        runner.upgrade(url)
    assert runner.current(url) is None
    assert versions(database, "alembic_version") == ["0005"]


def test_a_schema_of_its_own_is_a_way_out(url: str, database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE tasks (id int)"))
        connection.execute(text("CREATE SCHEMA apart"))
    apart = f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3Dapart"
    runner.upgrade(apart)
    assert runner.current(apart) == runner.head()
    assert runner.current(url) is None
    assert set(metadata.tables) <= set(inspect(database).get_table_names("apart"))
    assert tables(database) == {"tasks"}


def test_a_name_that_others_take_before_a_later_migration_is_a_sentence(url: str, database: Engine) -> None:
    runner.upgrade(url, "0011")
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE broker_queues (id int)"))
    run = taskyard(url, "db", "upgrade")
    assert (run.returncode, "Traceback" in run.stderr) == (1, False)
    assert 'relation "broker_queues" already exists. It is not from Taskyard\'s migrations' in run.stderr
    with database.begin() as connection:
        connection.execute(text("DROP TABLE broker_queues"))
    runner.upgrade(url)
    assert runner.current(url) == runner.head()


def test_tables_of_others_that_hide_ours_by_the_search_path_stop_every_role_with_a_sentence(url: str, database: Engine) -> None:
    runner.upgrade(url)
    settings = DatabaseSettings(url=SecretStr(f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3Dfront,public"))
    check_database(settings)
    with database.begin() as connection:
        connection.execute(text("CREATE SCHEMA front"))
        connection.execute(text("CREATE TABLE front.shop (id int)"))
    check_database(settings)
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE front.tasks (id int)"))
    with pytest.raises(ConfigurationError, match=r"^front\.tasks hides Taskyard's table"):
        check_database(settings)


def test_a_search_path_without_a_schema_is_a_sentence(url: str) -> None:
    run = taskyard(f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3Dnowhere", "db", "upgrade")
    assert (run.returncode, "Traceback" in run.stderr) == (1, False)
    assert "no schema has been selected to create in. The search_path names no schema" in run.stderr


# --- rights and encodings ---


def test_missing_rights_are_a_sentence(postgres_url: str, url: str) -> None:
    admin, name = admin_engine(postgres_url), make_url(url).database
    role = f"poor_{name}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f'CREATE ROLE "{role}" LOGIN')
        try:
            poor = make_url(url).set(username=role).render_as_string(hide_password=False)
            for arguments in (["db", "upgrade"], ["db", "upgrade", "0001"], ["keys", "create", "ci"]):
                run = taskyard(poor, *arguments)
                assert run.returncode == 1
                assert "Traceback" not in run.stderr
                assert len([line for line in run.stderr.splitlines() if "[info" not in line]) == 1, run.stderr
            assert "GRANT CREATE ON SCHEMA" in taskyard(poor, "db", "upgrade").stderr
            runner.upgrade(url)
            for arguments in (["db", "current"], ["keys", "create", "ci"]):
                run = taskyard(poor, *arguments)
                assert (run.returncode, "permission denied" in run.stderr, "Traceback" in run.stderr) == (1, True, False), run.stderr
        finally:
            connection.exec_driver_sql(f'DROP ROLE "{role}"')


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_other_encodings_than_utf8_are_refused_with_a_sentence(postgres_url: str, encoding: str) -> None:
    admin, name = admin_engine(postgres_url), f"ty_test_{encoding.lower()}_{os.getpid()}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
        try:
            url = make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
            with pytest.raises(ConfigurationError, match=f"encoding is {encoding}, and Taskyard needs UTF8"):
                runner.upgrade(url)
            for role in (["db", "upgrade"], ["serve", "--port", "0"], ["dispatcher"]):
                run = taskyard(url, *role)
                assert (run.returncode, "needs UTF8" in run.stderr, "Traceback" in run.stderr) == (1, True, False), run.stderr
        finally:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_database_and_role_that_set_everything_otherwise_are_migrated(url: str, database: Engine) -> None:
    admin, name = admin_engine(url), make_url(url).database
    with admin.connect() as connection:
        for setting, value in {
            "client_encoding": "LATIN1",
            "default_transaction_isolation": "serializable",
            "DateStyle": "German",
            "bytea_output": "escape",
        }.items():
            connection.exec_driver_sql(f"ALTER DATABASE \"{name}\" SET {setting} = '{value}'")
    runner.upgrade(url)
    assert runner.current(url) == runner.head()
    command.check(runner.config(url))
