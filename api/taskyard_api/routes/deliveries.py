"""Deliveries: what notifiers sent, failed to send, will retry; and sending again."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from taskyard import deliveries, queries
from taskyard_api.models import DELIVERY, DELIVERY_PAGE, DeliveryOut, DeliveryPage
from taskyard_api.parameters import DeliveryId, DeliveryQuery, delivery_number
from taskyard_api.routes.answers import answer, problems
from taskyard_api.service import Namespace, Serving

router = APIRouter(tags=["deliveries"])


@router.get("/deliveries", response_model=DeliveryPage, responses=problems())
async def list_deliveries(service: Serving, namespace: Namespace, query: Annotated[DeliveryQuery, Query()]) -> Response:
    """List deliveries with all their tries, newest first."""
    return answer(DELIVERY_PAGE, await service.read(queries.list_deliveries, namespace, query.filters(), query.limit, query.cursor))


@router.post("/deliveries/{delivery_id}/redeliver", response_model=DeliveryOut, responses=problems(404, 409))
async def redeliver(request: Request, service: Serving, namespace: Namespace, delivery_id: DeliveryId) -> Response:
    """Send a delivery again that is `dead` or `delivered`: the same event by the same ids, with fresh attempts. Its tries are kept."""
    number = delivery_number(delivery_id)
    return answer(DELIVERY, await service.operate(request, "delivery.redeliver", delivery_id, deliveries.redeliver, namespace, number))
