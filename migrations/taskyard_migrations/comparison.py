"""What `alembic revision --autogenerate` compares, beyond Alembic's own."""

from __future__ import annotations

from typing import Any

from alembic.runtime.plugins import Plugin
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import Column, Computed

NAME = "taskyard.generated_columns"
# Check constraints are compared by name: PostgreSQL rewrites their text, as it does below.
PLUGINS = ("alembic.autogenerate.*", "alembic.ext.checkconstraint_byname", NAME)


def generated_columns_agree(
    _context: Any, _op: Any, _schema: str | None, _table: str, _name: str, found: Column[Any], wanted: Column[Any]
) -> PriorityDispatchResult:
    """End the comparison of two generated columns' expressions before Alembic begins it.

    PostgreSQL keeps an expression in a form of its own (``IN`` becomes ``= ANY (ARRAY[...])``), so Alembic would warn about
    every one at every run; and it can't change one anyway. The tests compare both as PostgreSQL prints them.
    """
    both = isinstance(found.server_default, Computed) and isinstance(wanted.server_default, Computed)
    return PriorityDispatchResult.STOP if both else PriorityDispatchResult.CONTINUE


_plugin = Plugin(NAME)
_plugin.add_autogenerate_comparator(generated_columns_agree, "column", "server_default", priority=DispatchPriority.FIRST)
