"""Queues: how much waits in each, pause and resume."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from taskyard import backlog
from taskyard.records import LANES
from taskyard_api.models import QUEUE, QUEUES, QueueOut, Queues
from taskyard_api.routes.answers import answer, problems
from taskyard_api.routes.route import Route
from taskyard_api.service import Namespace, Serving

router = APIRouter(tags=["queues"], route_class=Route)


@router.get("/queues", response_model=Queues, responses=problems())
async def list_queues(service: Serving, namespace: Namespace) -> Response:
    """List all known queues: those that handlers name, that are paused, or that have tasks or workers."""
    found = await service.listed(namespace, backlog.depths, service.declared_queues, service.settings.dispatch.worker_silence)
    return answer(QUEUES, {"items": found})


@router.post("/queues/{name}/pause", response_model=QueueOut, responses=problems(404))
async def pause_queue(request: Request, service: Serving, name: str) -> Response:
    """Stop the dispatch of a queue. What runs goes on."""
    return answer(
        QUEUE, await service.operate(request, "queue.pause", name, backlog.pause, name, service.declared_queues, service.settings.dispatch.worker_silence)
    )


@router.post("/queues/{name}/resume", response_model=QueueOut, responses=problems(404))
async def resume_queue(request: Request, service: Serving, name: str) -> Response:
    """Start the dispatch of a queue again."""
    depth = await service.operate(request, "queue.resume", name, backlog.resume, name, service.declared_queues, service.settings.dispatch.worker_silence)
    for lane in LANES:
        service.announcer.announce(name, lane)
    return answer(QUEUE, depth)
