"""PostgreSQL refuses what a worker writes, for a while, and blames nobody's data: then all is written, and the worker works on as before."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias
from uuid import UUID

import pytest
from sqlalchemy import make_url, text

from taskyard_migrations import runner
from tests.stack import Gate, Stack, until

pytestmark = [pytest.mark.one_pair, pytest.mark.timeout(300)]
PROCESSES, ASYNC_SLOTS = 2, 4
Fault: TypeAlias = Callable[[Stack], AbstractContextManager[None]]
KICK = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'taskyard-%'"


@contextmanager
def _read_only(stack: Stack) -> Iterator[None]:
    """As for the sessions of a server that is made a standby, and made the primary again."""
    database = stack.engine.url.database
    with stack.engine.begin() as connection:
        connection.execute(text(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on'))
        connection.execute(text(KICK))
    yield
    with stack.engine.begin() as connection:
        connection.execute(text("SET TRANSACTION READ WRITE"))
        connection.execute(text(f'ALTER DATABASE "{database}" RESET default_transaction_read_only'))
    stack.engine.dispose()


@contextmanager
def _refusing(stack: Stack) -> Iterator[None]:
    """As by a standby, whatever its sessions have set: each table refuses each write."""
    with stack.engine.begin() as connection:
        on = connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).scalars().all()
        connection.execute(
            text(
                """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'cannot execute % in a read-only transaction', TG_OP USING ERRCODE = '25006'; END $$"""
            )
        )
        for table in on:
            connection.execute(text(f'CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON "{table}" EXECUTE FUNCTION refuse()'))
    yield
    with stack.engine.begin() as connection:
        connection.execute(text("DROP FUNCTION refuse() CASCADE"))


@contextmanager
def _without_rights(stack: Stack) -> Iterator[None]:
    """The right to change tasks is taken away from the roles' user."""
    user = make_url(stack.env["DATABASE_URL"]).username
    with stack.engine.begin() as connection:
        connection.execute(text(f'REVOKE UPDATE ON tasks FROM "{user}"'))
    yield
    with stack.engine.begin() as connection:
        connection.execute(text(f'GRANT UPDATE ON tasks TO "{user}"'))


@contextmanager
def _downgraded(stack: Stack) -> Iterator[None]:
    """The schema is taken back to a revision that this version's statements don't know, and brought up again."""
    url = stack.engine.url.render_as_string(hide_password=False)
    runner.downgrade(url, "0009")
    yield
    runner.upgrade(url)


@pytest.fixture
def user(own_stack: Stack) -> Iterator[str]:
    """The roles' PostgreSQL user, who owns nothing."""
    name = f"ty_test_{uuid.uuid4().hex[:12]}"
    grants = ("ALL ON ALL TABLES IN SCHEMA public", "ALL ON ALL SEQUENCES IN SCHEMA public", "ALL ON SCHEMA public")
    with own_stack.engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'x'"))
        for grant in grants:
            connection.execute(text(f'GRANT {grant} TO "{name}"'))
        connection.execute(text(f'ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO "{name}"'))
    url = make_url(own_stack.env["DATABASE_URL"])
    own_stack.env["DATABASE_URL"] = url.set(username=name, password="x").render_as_string(hide_password=False)
    yield name
    for role in list(own_stack.processes):
        own_stack.stop(role)
    with own_stack.engine.begin() as connection:
        connection.execute(text(f'DROP OWNED BY "{name}" CASCADE'))
        connection.execute(text(f'DROP ROLE "{name}"'))


@pytest.mark.parametrize("fault", [_read_only, _refusing, _without_rights, _downgraded], ids=["sessions read-only", "server read-only", "rights", "schema"])
@pytest.mark.usefixtures("user")
def test_what_ended_while_writes_were_refused_is_recorded_as_it_was_and_every_slot_works_on(own_stack: Stack, fault: Fault) -> None:
    stack = own_stack
    stack.env |= {
        "TASKYARD_WORKER__PROCESSES": str(PROCESSES),
        "TASKYARD_WORKER__ASYNC_SLOTS": str(ASYNC_SLOTS),
        "TASKYARD_WORKER__HEARTBEAT": "0.5",
        "TASKYARD_DISPATCH__TICK": "0.2",
        # Nothing here may lean on what the sweeper or the reaper repairs.
        "TASKYARD_DISPATCH__SWEEP_AFTER": "600",
        "TASKYARD_DISPATCH__WORKER_SILENCE": "600",
    }
    stack.start("dispatcher")
    stack.start("worker")
    stack.ready()
    gate = stack.gate()
    running = _held(stack, gate)
    # Their messages are at the worker, and are claimed as soon as a slot is free.
    waiting = stack.submit_all([("t.echo", {"word": "next"}, {}), ("t.asleep", {"seconds": 0}, {})] * 3)
    said = len(stack.log("worker"))
    with fault(stack):
        gate.open()
        # At the first and the second refusal.
        until(lambda: stack.log("worker")[said:].count("ledger.not_written") > 1, 60, "the refusal of what has ended")
    for task in running:
        row = stack.wait(task, seconds=60)
        assert (row["status"], row["error"], row["fence"], row["attempt"], row["lost"]) == ("succeeded", None, 1, 1, 0)
    for task in [*waiting, *stack.submit_all([("t.echo", {"word": "after"}, {}), ("t.asleep", {"seconds": 0}, {})] * ASYNC_SLOTS)]:
        row = stack.wait(task, seconds=60)
        assert (row["status"], row["fence"]) == ("succeeded", 1)
    gate = stack.gate()
    full = _held(stack, gate)
    gate.open()
    for task in full:
        assert stack.wait(task, seconds=60)["status"] == "succeeded"
    for wrong in ("unstorable", "Task exception was never retrieved", "tasks.forgotten", "tasks.swept"):
        assert wrong not in stack.log("worker") + stack.log("dispatcher")


def _held(stack: Stack, gate: Gate) -> list[UUID]:
    """Tasks that fill every slot until the gate opens, and run."""
    wanted = [*["t.gated"] * PROCESSES, *["t.agated"] * ASYNC_SLOTS]
    tasks = stack.submit_all([(type_, gate.payload("held"), {}) for type_ in wanted])
    for task in tasks:
        stack.wait(task, "running", seconds=60)
    return tasks
