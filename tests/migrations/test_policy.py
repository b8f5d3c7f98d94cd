"""docs/migrations.md is kept: a release only adds to the schema, or says that it takes away."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from taskyard_migrations import runner

from .policy import breaches, schema_of
from .test_migrations import empty as empty
from .test_migrations import empty_url as empty_url


def _later() -> list[Any]:
    """Each revision after the first, the oldest first."""
    revisions = list(ScriptDirectory.from_config(runner.config()).walk_revisions())
    return revisions[::-1][1:]


@pytest.mark.one_pair
@pytest.mark.parametrize("revision", _later(), ids=lambda revision: revision.revision)
def test_a_migration_only_expands_unless_it_says_otherwise(revision: Any, empty_url: str, empty: Engine) -> None:
    runner.upgrade(empty_url, revision.down_revision)
    before = schema_of(empty)
    runner.upgrade(empty_url, revision.revision)
    found = breaches(before, schema_of(empty))
    assert bool(found) is getattr(revision.module, "contract", False), found


@pytest.mark.one_pair
@pytest.mark.parametrize("revision", _later(), ids=lambda revision: revision.revision)
def test_an_index_on_a_table_with_rows_is_made_concurrently(revision: Any, empty_url: str, empty: Engine) -> None:
    runner.upgrade(empty_url, revision.down_revision)
    config = runner.config(empty_url)
    config.output_buffer = StringIO()
    command.upgrade(config, f"{revision.down_revision}:{revision.revision}", sql=True)
    for table in schema_of(empty):
        assert not re.search(rf"CREATE (UNIQUE )?INDEX (?!CONCURRENTLY).* ON {table}\b", config.output_buffer.getvalue())


@pytest.mark.one_pair
@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("ALTER TABLE tasks ADD COLUMN colour text", []),
        ("ALTER TABLE tasks ADD COLUMN colour text NOT NULL DEFAULT 'red'", []),
        ("ALTER TABLE events ADD COLUMN n bigint GENERATED ALWAYS AS IDENTITY", []),
        ("ALTER TABLE tasks ADD COLUMN n int GENERATED ALWAYS AS (priority + 1) STORED", []),
        ("CREATE TABLE colours (name text PRIMARY KEY, code int NOT NULL UNIQUE CHECK (code > 0))", []),
        ("CREATE INDEX ix_tasks_colour ON tasks (priority)", []),
        ("DROP TABLE routes", ["table routes is gone"]),
        ("ALTER TABLE tasks DROP COLUMN progress", ["column tasks.progress is gone"]),
        ("ALTER TABLE tasks RENAME COLUMN progress TO far", ["column tasks.progress is gone"]),
        ("ALTER TABLE tasks ALTER COLUMN progress TYPE text", ["column tasks.progress has changed"]),
        ("ALTER TABLE tasks ALTER COLUMN tags DROP DEFAULT", ["column tasks.tags has changed"]),
        ("ALTER TABLE tasks ALTER COLUMN progress SET NOT NULL", ["column tasks.progress has changed"]),
        ("ALTER TABLE tasks ADD COLUMN colour text NOT NULL", ["column tasks.colour refuses rows"]),
        ("ALTER TABLE tasks ADD CONSTRAINT small CHECK (priority < 5)", ["check tasks.small refuses rows"]),
        ("ALTER TABLE tasks DROP CONSTRAINT ck_tasks_lane", ["check tasks.ck_tasks_lane is gone"]),
        ("CREATE UNIQUE INDEX uq_workers_name ON workers (name)", ["index workers.uq_workers_name refuses rows"]),
        ("DROP INDEX ix_tasks_line", ["index tasks.ix_tasks_line is gone"]),
        ("ALTER TABLE events ADD CONSTRAINT fk FOREIGN KEY (task_id) REFERENCES tasks (id)", ["foreign key events.fk refuses rows"]),
    ],
)
def test_the_policy_sees_what_is_no_expansion(engine: Engine, change: str, found: list[str]) -> None:
    before = schema_of(engine)
    with engine.begin() as connection:
        connection.execute(text(change))
    assert breaches(before, schema_of(engine)) == found
