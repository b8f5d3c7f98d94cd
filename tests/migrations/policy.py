"""Expand, then contract: what a migration took away, or refuses that was right before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sqlalchemy import Engine, inspect

#: Each table's parts: ("column", name), ("index", name), ... with how they are defined.
Schema = dict[str, dict[tuple[str, str], dict[str, Any]]]


def schema_of(engine: Engine) -> Schema:
    """The tables as they are now."""
    looking = inspect(engine)
    found: Schema = {}
    for table in looking.get_table_names():
        if table == "taskyard_alembic_version":
            continue
        kinds: dict[str, Sequence[Mapping[str, Any]]] = {
            "column": looking.get_columns(table),
            "index": looking.get_indexes(table),
            "check": looking.get_check_constraints(table),
            "unique": looking.get_unique_constraints(table),
            "foreign key": looking.get_foreign_keys(table),
            "primary key": [cast("Mapping[str, Any]", looking.get_pk_constraint(table))],
        }
        found[table] = {(kind, str(part["name"])): {key: repr(value) for key, value in part.items()} for kind, parts in kinds.items() for part in parts}
    return found


def breaches(before: Schema, after: Schema) -> list[str]:
    """What is no expansion: the version before may need it, or may write what it refuses."""
    found = [f"table {table} is gone" for table in before if table not in after]
    for table in before.keys() & after.keys():
        old, new = before[table], after[table]
        found += [f"{kind} {table}.{name} is gone" for kind, name in old if (kind, name) not in new]
        found += [f"{kind} {table}.{name} has changed" for kind, name in old if new.get((kind, name), old[kind, name]) != old[kind, name]]
        found += [f"{kind} {table}.{name} refuses rows" for (kind, name), part in new.items() if (kind, name) not in old and _refuses(kind, part)]
    return sorted(found)


def _refuses(kind: str, part: dict[str, str]) -> bool:
    if kind == "column":
        return part["nullable"] == "False" and part["default"] == "None" and "computed" not in part and part.get("identity", "None") == "None"
    return kind != "index" or part["unique"] == "True"
