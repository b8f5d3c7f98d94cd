"""Every statement that locks rows is written in the one way that loses none: see the head of lifecycle.py."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

import pytest
from sqlalchemy import TextClause

import taskyard
from taskyard import lifecycle

_LOCKS = re.compile(r"\bFOR (NO KEY )?UPDATE\b")
_MOVES = re.compile(r"\b(UPDATE (?!SET\b|SKIP\b|OF\b)\w+ |DELETE FROM )")
_CTE = re.compile(r"\b(?P<name>\w+)(\([^)]*\))? AS (?P<materialized>MATERIALIZED )?\(\s*(?P<verb>\w+)")


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, TextClause):
        yield value.text
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, lifecycle._Verb):
        yield from (value.one.text, value.many.text)


def _statements() -> dict[str, str]:
    """The statements that core's modules keep, by module and name."""
    found: dict[str, str] = {}
    for module in pkgutil.walk_packages(taskyard.__path__, "taskyard."):
        if module.name == "taskyard.__main__":
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            for n, sql in enumerate(_texts(value)):
                found.setdefault(re.sub(r"--.*", "", sql), f"{module.name}:{name}:{n}")
    return {name: sql for sql, name in found.items()}


LOCKING = {name: sql for name, sql in _statements().items() if _LOCKS.search(sql) and _MOVES.search(sql)}


@pytest.mark.parametrize("name", sorted(LOCKING))
def test_what_stands_between_a_lock_and_an_update_is_materialized(name: str) -> None:
    inlined = [cte["name"] for cte in _CTE.finditer(LOCKING[name]) if cte["verb"] in ("SELECT", "WITH") and not cte["materialized"]]
    assert inlined == [], "PostgreSQL may run these again, on the old snapshot, for a row that it had to wait for"


@pytest.mark.parametrize("name", sorted(LOCKING))
def test_rows_are_locked_in_a_query_of_its_own_and_in_an_order(name: str) -> None:
    sql = LOCKING[name]
    assert not re.search(r"\bIN \(\s*SELECT[^()]*(\([^()]*\)[^()]*)*FOR UPDATE", sql), "a sub-query that locks belongs into a CTE"
    for lock in _LOCKS.finditer(sql):
        start = sql.rfind("SELECT", 0, lock.start())
        assert "ORDER BY" in sql[max(start, sql.rfind("AS MATERIALIZED (", 0, lock.start())) : lock.start()], sql


def test_the_statements_are_found() -> None:
    assert {name.split(":")[0] for name in LOCKING} >= {"taskyard.lifecycle", "taskyard.deliveries", "taskyard.retention", "taskyard.idempotency"}
    assert len(LOCKING) >= 16
