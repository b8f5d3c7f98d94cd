"""One verb on all tasks that match a filter."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json
from sqlalchemy import Connection, RowMapping

from taskyard import lifecycle, queries
from taskyard.lifecycle import TRANSITIONS
from taskyard.queries import TaskFilters
from taskyard_api.body import json_object
from taskyard_api.models import ActionOut
from taskyard_api.parameters import action_filters, read_action
from taskyard_api.routes.answers import BODY, body, problems
from taskyard_api.service import Namespace, Serving

router = APIRouter(tags=["tasks"])
#: Tasks that one statement looks at, and that one commit moves: few enough to keep nobody waiting for their locks.
PAGE, BATCH = 1000, 200


@router.post("/tasks/actions", response_model=ActionOut, responses=problems(*BODY), openapi_extra=body("TaskAction"))
async def act_on_tasks(request: Request, service: Serving, namespace: Namespace) -> Response:
    """Cancel, hold, release or retry all tasks that match a filter, newest first, a batch and a commit at a time.

    `matched` counts the tasks that the filter found, `changed` those of them whose status allowed the action. What is submitted meanwhile is
    not touched. With `dry_run` nothing is changed.
    """
    asked = read_action(await json_object(request))
    filters, verb = service.widened(action_filters(asked["filter"])), asked["action"]
    sought = to_json(asked["filter"]).decode()
    matched = changed = 0
    last = None

    def counted(moved: Sequence[RowMapping]) -> str:
        return f"{len(moved)} of {sought}"

    while page := await service.read(queries.matching, namespace, filters, PAGE, last):
        last = page[-1].id
        matched += len(page)
        ids = [] if asked.get("dry_run") else [row.id for row in page if row.status in TRANSITIONS[verb]]
        for start in range(0, len(ids), BATCH):
            moved = await service.operate(request, f"tasks.{verb}", counted, _act, verb, namespace, filters, ids[start : start + BATCH])
            for row in moved:
                service.moved(row)
            changed += len(moved)
        if len(page) < PAGE:
            break
    return Response(to_json({"matched": matched, "changed": changed}), media_type="application/json")


def _act(connection: Connection, verb: str, namespace: str, filters: TaskFilters, ids: Sequence[UUID]) -> Sequence[RowMapping]:
    """What was found a moment ago may have started since, and not be meant any more."""
    return lifecycle.move_many(connection, verb, namespace, queries.still_matching(connection, namespace, filters, ids))
