"""Sequences that are behind their tables are found, and the statement that is named for each mends it."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from taskyard import interference, sequences
from taskyard.tables import metadata

from .life import Life


def test_a_sequence_that_is_behind_is_found_and_its_remedy_mends_it(life: Life) -> None:
    for _ in range(3):
        life.submit()
    assert _behind(life) == []
    highest = life.column("SELECT max(id) FROM events")[0]
    life.execute("SELECT setval('events_id_seq', 1, false)")
    [late] = _behind(life)
    assert (late.sequence, late.highest) == ("public.events_id_seq", highest)
    life.execute(late.remedy)
    assert _behind(life) == []
    life.submit()


def test_one_from_which_nothing_was_drawn_is_behind_if_its_table_has_rows(life: Life) -> None:
    """As on a logical replica."""
    life.submit()
    life.execute("ALTER SEQUENCE events_id_seq RESTART WITH 1")
    [late] = _behind(life)
    life.execute(late.remedy)
    life.submit()


def test_every_sequence_of_ours_is_looked_at(life: Life) -> None:
    named = {f"public.{table.name}_{column.name}_seq" for table in metadata.sorted_tables for column in table.columns if column.identity is not None}
    there = life.column("SELECT format('%I.%I', schemaname, sequencename) FROM pg_sequences")
    assert named == set(there)


@pytest.mark.parametrize(
    ("made", "what"),
    [
        ("CREATE TRIGGER t BEFORE UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION f()", ["trigger t on tasks"]),
        ("CREATE TRIGGER t AFTER UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION f()", []),
        ("CREATE RULE r AS ON INSERT TO events DO INSTEAD NOTHING", ["rule r on events"]),
        ("CREATE TABLE theirs (); CREATE TRIGGER t BEFORE INSERT ON theirs FOR EACH ROW EXECUTE FUNCTION f()", []),
        ("", []),
    ],
)
def test_what_can_keep_a_row_out_is_found_and_what_cannot_is_not(life: Life, made: str, what: list[str]) -> None:
    with life.engine.connect() as connection:
        connection.execute(text("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"))
        connection.exec_driver_sql(made or "SELECT 1")
        assert interference.found(connection) == what
        connection.rollback()


def _behind(life: Life) -> list[sequences.Behind]:
    with life.engine.connect() as connection:
        return sequences.behind(connection)
