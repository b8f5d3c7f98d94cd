"""The usual service, as a newcomer writes it from the tutorials: FastAPI, SQLAlchemy's ORM, and `delay()` in the request.

`python -m benchmarks.peers.usual_service PORT` serves it with one web process; Celery's own command runs its worker.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import uvicorn
from celery import Celery
from fastapi import Depends, FastAPI, HTTPException
from kombu import Exchange, Queue
from pydantic import BaseModel
from sqlalchemy import create_engine
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from benchmarks.peers.driver import started

PREFIX = os.environ["BENCH_PREFIX"]
engine = create_engine(os.environ["BENCH_DATABASE"].replace("postgresql://", "postgresql+psycopg2://", 1))
SessionLocal = sessionmaker(engine)
app = FastAPI()
celery = Celery("usual", broker=os.environ["BENCH_BROKER"])
celery.conf.task_queues = [Queue(PREFIX, Exchange(PREFIX), routing_key=PREFIX)]
celery.conf.task_default_queue = celery.conf.task_default_exchange = celery.conf.task_default_routing_key = PREFIX
celery.conf.task_ignore_result = True
celery.conf.broker_connection_retry_on_startup = True


class Base(DeclarativeBase):
    """Tables."""


class Task(Base):
    """One task."""

    __tablename__ = "usual_tasks"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    type: Mapped[str]
    status: Mapped[str] = mapped_column(default="pending", index=True)
    payload: Mapped[dict[str, Any]] = mapped_column(JSONB)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC).replace(tzinfo=None), index=True)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Payload(BaseModel):
    """The payload."""

    number: int


class TaskIn(BaseModel):
    """A task as it is submitted."""

    type: str
    payload: Payload


class TaskOut(BaseModel):
    """A task as it is answered."""

    model_config = {"from_attributes": True}

    id: uuid.UUID
    type: str
    status: str
    payload: dict[str, Any]
    result: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


def session() -> Iterator[Session]:
    """A session a request."""
    with SessionLocal() as opened:
        yield opened


Db = Annotated[Session, Depends(session)]


@app.post("/api/v1/tasks", status_code=201, response_model=TaskOut)
def submit(body: TaskIn, db: Db) -> Task:
    """Store a task, and send it to Celery."""
    task = Task(type=body.type, payload=body.payload.model_dump())
    db.add(task)
    db.commit()
    db.refresh(task)
    run.delay(str(task.id))
    return task


@app.get("/api/v1/tasks/{task_id}", response_model=TaskOut)
def read(task_id: uuid.UUID, db: Db) -> Task:
    """One task."""
    if task := db.get(Task, task_id):
        return task
    raise HTTPException(404)


@celery.task(name="run")  # type: ignore[untyped-decorator]  # Celery has no types
def run(task_id: str) -> None:
    """Run a task, and store how it went."""
    with SessionLocal() as db:
        task = db.get_one(Task, uuid.UUID(task_id))
        task.status, task.started_at = "running", datetime.now(UTC).replace(tzinfo=None)
        db.commit()
        started(task.payload["number"])
        task.status, task.finished_at = "succeeded", datetime.now(UTC).replace(tzinfo=None)
        db.commit()


if __name__ == "__main__":
    Base.metadata.create_all(engine)
    uvicorn.run(app, port=int(sys.argv[1]), http="httptools", log_config=None, access_log=False)
