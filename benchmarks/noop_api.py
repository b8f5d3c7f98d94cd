"""The ceiling: a FastAPI service with Taskyard's own models that validates, answers and does nothing else."""

from __future__ import annotations

import sys
import uuid
from datetime import UTC, datetime

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from taskyard.submission import TaskIn
from taskyard_api.models import TaskOut

app = FastAPI()


class Payload(BaseModel):
    """The payload's model, as a handler's."""

    number: int


class Submitted(TaskIn):
    """One type's task."""

    payload: Payload


@app.post("/api/v1/tasks", status_code=201)
async def submit(task: Submitted) -> TaskOut:
    """Answer as if the task were stored."""
    now = datetime.now(UTC)
    return TaskOut.model_construct(
        id=uuid.uuid4(),
        namespace="default",
        type=task.type,
        status="pending",
        payload=task.payload.model_dump(),
        priority=5,
        queue="default",
        run_at=None,
        expires_at=None,
        timeout=60.0,
        max_attempts=1,
        tags=[],
        metadata={},
        unique_key=None,
        parent_id=None,
        attempt=0,
        result=None,
        error=None,
        progress=None,
        created_at=now,
        updated_at=now,
        queued_at=None,
        started_at=None,
        finished_at=None,
        next_run_at=None,
        cancel_requested=False,
        version=1,
    )


if __name__ == "__main__":
    # As `taskyard serve` runs its own.
    uvicorn.run(app, port=int(sys.argv[1]), http="httptools", log_config=None, access_log=False, server_header=False)
