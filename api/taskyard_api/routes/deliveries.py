"""Deliveries: what notifiers sent, failed to send, will retry; and sending again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json
from sqlalchemy import Row
from starlette.convertors import register_url_convertor

from taskyard import cursors, deliveries, delivery_lists, queries
from taskyard.deliveries import ENDED
from taskyard_api import bulk
from taskyard_api.body import json_object
from taskyard_api.models import DELIVERY, DELIVERY_PAGE, DeliveryActionOut, DeliveryOut, DeliveryPage
from taskyard_api.parameters import DeliveryConvertor, DeliveryId, DeliveryQuery, delivery_action_filters, delivery_number, read_delivery_action
from taskyard_api.routes.answers import BODY, answer, body, problems
from taskyard_api.routes.route import Route
from taskyard_api.service import Namespace, Serving, home_of, namespace_of, reach_of

register_url_convertor("delivery", DeliveryConvertor())
router = APIRouter(tags=["deliveries"], route_class=Route)
#: Deliveries that one statement looks at, and that one commit moves.
PAGE, BATCH = 1000, 200


@router.get("/deliveries", response_model=DeliveryPage, responses=problems())
async def list_deliveries(request: Request, service: Serving, query: Annotated[DeliveryQuery, Query()]) -> Response:
    """List deliveries with all their tries, newest first."""
    reach, ids = reach_of(request, query.namespace), await service.public_ids()
    page = await service.listed(namespace_of(request), delivery_lists.list_deliveries, reach, query.filters(), query.limit, query.cursor, ids)
    return answer(DELIVERY_PAGE, page, ids=ids)


@router.post("/deliveries/actions", response_model=DeliveryActionOut, responses=problems(*BODY), openapi_extra=body("DeliveryAction"))
async def act_on_deliveries(request: Request, service: Serving, namespace: Namespace) -> Response:
    """Send all deliveries again that match a filter and have ended (`dead` or `delivered`), newest first, a batch and a commit at a time.

    `matched` counts the deliveries that the filter found, `changed` those of them that are sent again. With `dry_run` nothing is changed,
    and `would_change` counts what would be, by old and new status. One request
    looks at up to 10,000 deliveries: if there may be more, the answer has a `next_cursor`, which goes on as that of `POST /tasks/actions` does.
    """
    asked, ids = read_delivery_action(await json_object(request)), await service.public_ids()
    filters, sought = delivery_action_filters(asked["filter"]), to_json(asked["filter"]).decode()
    lists, bound_to = service.lists, ["actions", "redeliver", namespace, asdict(filters)]

    def counted(sent: int) -> str:
        return f"{sent} of {sought}"

    async def find(before: int | None) -> Sequence[Row[Any]]:
        return await service.read(lists.timed(delivery_lists.matching), namespace, filters, PAGE, before)

    would: Counter[tuple[str, str]] | None = Counter() if asked.get("dry_run") else None

    async def move(rows: Sequence[Row[Any]]) -> int:
        if would is not None:
            would.update((row.status, "pending") for row in rows if row.status in ENDED)
            return 0
        ended = [row.id for row in rows if row.status in ENDED]
        verb = lists.timed(deliveries.redeliver_many)
        return await service.operate(request, "deliveries.redeliver", counted, verb, namespace, ended, filters.status or ENDED) if ended else 0

    after = None if (cursor := asked.get("cursor")) is None else ids.reveal(queries.number_of(cursors.decode(cursor, bound_to)))
    async with lists.place(namespace):
        outcome = await bulk.act(bulk.Steps(find, move, PAGE, BATCH), after)
    return bulk.answer(outcome, lambda number: ids.hide(number).to_bytes(8), bound_to, would)


@router.get("/deliveries/{delivery_id:delivery}", response_model=DeliveryOut, responses=problems(404))
async def get_delivery(request: Request, service: Serving, delivery_id: DeliveryId) -> Response:
    """Look at one delivery and all its tries."""
    ids = await service.public_ids()
    number = ids.reveal(delivery_number(delivery_id))
    namespace = await home_of(request, delivery_lists.namespace_of_delivery, number)
    return answer(DELIVERY, await service.read(delivery_lists.delivery, namespace, number, ids), ids=ids)


@router.post("/deliveries/{delivery_id}/redeliver", response_model=DeliveryOut, responses=problems(404, 409))
async def redeliver(request: Request, service: Serving, delivery_id: DeliveryId) -> Response:
    """Send a delivery again that is `dead` or `delivered`: the same event by the same ids, with fresh attempts. Its tries are kept."""
    ids = await service.public_ids()
    number = ids.reveal(delivery_number(delivery_id))
    namespace = await home_of(request, delivery_lists.namespace_of_delivery, number, write=True)
    row = await service.operate(request, "delivery.redeliver", delivery_id, deliveries.redeliver, namespace, number, ids)
    return answer(DELIVERY, row, ids=ids)
