"""A service that shares Taskyard's database: an order and its task, in one transaction. Both are there, or neither.

    DATABASE_URL=postgresql://taskyard@localhost/taskyard python examples/orders.py 3 14 0

Takes an order for each number of pieces. An order for nothing breaks a rule of the table: its transaction is rolled back, and with it the task
that was submitted before.
"""

from __future__ import annotations

import os
import sys

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

import taskyard

TABLE = "CREATE TABLE IF NOT EXISTS orders (id bigserial PRIMARY KEY, pieces int NOT NULL CHECK (pieces > 0), task_id uuid NOT NULL)"


def take_order(session: Session, pieces: int) -> taskyard.SubmittedTask:
    """Nothing is committed here: whoever has begun the transaction does that."""
    task = taskyard.submit(session, "demo.echo", {"text": f"{pieces} pieces, packed"}, tags=["orders"], priority=7)
    session.execute(text("INSERT INTO orders (pieces, task_id) VALUES (:pieces, :task)"), {"pieces": pieces, "task": task.id})
    return task


def main() -> int:
    engine = create_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.execute(text(TABLE))
    for pieces in map(int, sys.argv[1:]):
        try:
            with Session(engine) as session, session.begin():
                task = take_order(session, pieces)
        except IntegrityError:
            print(f"{pieces} pieces: refused")
        else:
            print(f"{pieces} pieces: task {task.id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
