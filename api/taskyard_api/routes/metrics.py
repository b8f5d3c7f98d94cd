"""Metrics: the whole installation, as Prometheus scrapes it from any web process."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from taskyard.errors import Unavailable
from taskyard.gauges import GAUGES
from taskyard.metrics import SHARED
from taskyard_api.exposition import Exposition
from taskyard_api.measures import OWN, UP
from taskyard_api.routes.route import Route
from taskyard_api.service import Serving

router = APIRouter(tags=["health"], route_class=Route)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
async def metrics(service: Serving) -> Response:
    """Metrics in Prometheus' text format. Without a database: those of this process."""
    samples = service.measures.samples()
    try:
        samples.update(await service.scrape.take())
        samples.add(UP, 1)
        shown = [*SHARED, *GAUGES, *OWN]
    except Unavailable:
        samples.add(UP, 0)
        shown = [*OWN]
    return Response(Exposition(shown, samples).text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
