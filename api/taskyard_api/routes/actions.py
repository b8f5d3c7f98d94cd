"""One verb on all tasks that match a filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json
from sqlalchemy import Connection, Row, RowMapping

from taskyard import cursors, lifecycle, queries
from taskyard.queries import TaskFilters
from taskyard_api import bulk
from taskyard_api.body import json_object
from taskyard_api.models import ActionOut
from taskyard_api.parameters import action_filters, read_action
from taskyard_api.routes.answers import BODY, body, problems
from taskyard_api.routes.route import Route
from taskyard_api.service import Namespace, Serving

router = APIRouter(tags=["tasks"], route_class=Route)
#: Tasks that one statement looks at, and that one commit moves: few enough to keep nobody waiting for their locks.
PAGE, BATCH = 1000, 200


@router.post("/tasks/actions", response_model=ActionOut, responses=problems(*BODY), openapi_extra=body("TaskAction"))
async def act_on_tasks(request: Request, service: Serving, namespace: Namespace) -> Response:
    """Cancel, hold, release or retry all tasks that match a filter, newest first, a batch and a commit at a time.

    `matched` counts the tasks that the filter found, `changed` those of them whose status allowed the action. What is submitted meanwhile is
    not touched. With `dry_run` nothing is changed, and `would_change` counts what would be, by old and new status, as tasks stand now.
    One request looks at up to 10,000 tasks: if there may be more, the answer has a `next_cursor`.
    Send the same action again with it as `cursor`, until an answer has none, and add up the counts.
    """
    asked = read_action(await json_object(request))
    filters, verb = service.widened(action_filters(asked["filter"])), asked["action"]
    sought = to_json(asked["filter"]).decode()
    lists, bound_to = service.lists, ["actions", verb, namespace, filters.identity()]

    def counted(moved: Sequence[RowMapping]) -> str:
        return f"{len(moved)} of {sought}"

    async def find(before: UUID | None) -> Sequence[Row[Any]]:
        return await service.read(lists.timed(queries.matching), namespace, filters, PAGE, before)

    would: Counter[tuple[str, str]] | None = Counter() if asked.get("dry_run") else None

    async def move(rows: Sequence[Row[Any]]) -> int:
        moves = [(row.id, row.status, becomes) for row in rows if (becomes := lifecycle.becomes(verb, row.status, ahead=row.ahead, stopping=row.stopping))]
        if would is not None:
            would.update((status, becomes) for _, status, becomes in moves)
            return 0
        ids = [id_ for id_, _, _ in moves]
        if not ids:
            return 0
        moved = await service.operate(request, f"tasks.{verb}", counted, lists.timed(_act), verb, namespace, filters, ids)
        for row in moved:
            service.moved(row)
        return len(moved)

    after = None if (cursor := asked.get("cursor")) is None else queries.uuid_of(cursors.decode(cursor, bound_to))
    async with lists.place(namespace):
        outcome = await bulk.act(bulk.Steps(find, move, PAGE, BATCH), after)
    return bulk.answer(outcome, attrgetter("bytes"), bound_to, would)


def _act(connection: Connection, verb: str, namespace: str, filters: TaskFilters, ids: Sequence[UUID]) -> Sequence[RowMapping]:
    """What was found a moment ago may have started since, and not be meant any more."""
    return lifecycle.move_many(connection, verb, namespace, queries.still_matching(connection, namespace, filters, ids))
