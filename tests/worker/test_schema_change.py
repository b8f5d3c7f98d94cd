"""A migration under running workers and dispatchers: no task is lost, run twice or swept, and no pool says so more than once."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from tests.stack import Stack

pytestmark = pytest.mark.one_pair
WIDER = """
ALTER TABLE tasks ADD COLUMN added int, ALTER COLUMN attempt TYPE bigint, ALTER COLUMN max_attempts TYPE bigint, ALTER COLUMN priority TYPE bigint;
ALTER TABLE events ADD COLUMN added int, ALTER COLUMN attempt TYPE bigint;
"""
NARROWER = WIDER.replace("ADD COLUMN added int", "DROP COLUMN added").replace("priority TYPE bigint", "priority TYPE smallint").replace("bigint", "int")


def test_tasks_run_on_while_tables_are_altered(own_stack: Stack) -> None:
    stack = own_stack
    stack.env["TASKYARD_LOG__LEVEL"] = "info"
    stack.start("dispatcher")
    stack.start("worker")
    stack.ready()

    # One after the other: each is dispatched, claimed and finished by statements of its own, which are prepared after some uses.
    def run_some() -> None:
        for number in range(12):
            task = stack.wait(stack.submit("t.echo", {"word": str(number)}), seconds=60)
            assert (task["status"], task["attempt"], task["fence"]) == ("succeeded", 1, 1)

    run_some()
    for change in (WIDER, NARROWER):
        with stack.engine.begin() as connection:
            connection.execute(text(change))
        # The tests' own connections have stale plans as well.
        stack.engine.dispose()
        run_some()
    logs = {role: stack.log(role) for role in ("worker", "dispatcher")}
    assert all("transaction.repeated" in log for log in logs.values()), "no plan was stale: this proves nothing"
    for wrong in ("ledger.not_written", "ledger.refused", "dispatcher.waits", "dispatcher.error", "tasks.swept", "not_flushed"):
        assert not any(wrong in log for log in logs.values()), wrong
