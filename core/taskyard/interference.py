"""What somebody else has put on our tables that can keep a row out of them without an error: triggers, rules, row security."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from taskyard.database_errors import Discarded
from taskyard.tables import metadata

# A row trigger that runs before the statement's own work can return NULL, and the row is left out. Those that run after it can't.
_FOUND = text(
    """
WITH ours AS (
  SELECT c.oid, c.relname AS name FROM unnest(CAST(:tables AS text[])) AS given(name) JOIN pg_class c ON c.oid = to_regclass(given.name)
)
SELECT found.what || ' on ' || ours.name FROM ours CROSS JOIN LATERAL (
  SELECT 'trigger ' || t.tgname FROM pg_trigger t WHERE t.tgrelid = ours.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgtype & 3 = 3
  UNION ALL
  SELECT 'rule ' || r.rulename FROM pg_rewrite r WHERE r.ev_class = ours.oid AND r.ev_enabled <> 'D'
  UNION ALL
  SELECT 'row security' WHERE row_security_active(ours.oid)
) AS found(what)
ORDER BY 1"""
)


def found(connection: Connection, tables: Sequence[str] = tuple(sorted(metadata.tables))) -> list[str]:
    """Such things on these tables of ours, each as a phrase such as ``trigger keep_out on tasks``."""
    return list(connection.execute(_FOUND, {"tables": list(tables)}).scalars())


def discarded(connection: Connection) -> Discarded:
    """The error to raise for a new task that PostgreSQL has left out for no reason of ours, with what may have done that."""
    there = found(connection, ["tasks"])
    why = f"{', '.join(there)} may have kept it out: drop or disable what does" if there else "nothing is found that could have kept it out"
    return Discarded(f"PostgreSQL inserted a task without an error, and it is not there; {why}")
