"""Health: is the process up, and can it do its work."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from taskyard import readiness
from taskyard.errors import Unavailable
from taskyard_api.models import Alive, Ready
from taskyard_api.problems import RETRY_AFTER
from taskyard_api.routes.route import Route
from taskyard_api.service import Service, Serving

router = APIRouter(tags=["health"], route_class=Route)


@router.get("/health/live")
async def live() -> Alive:
    """The process is up."""
    return Alive()


@router.get("/health/ready", responses={503: {"model": Ready, "description": "A part that this process needs is not usable."}})
async def ready(service: Serving, request: Request, response: Response) -> Ready:
    """Database and schema are usable, a write would work, and the process is not about to stop. Answers within 2 seconds, whatever hangs."""
    parts = await _parts(service)
    if request.app.state.draining.begun:
        parts = parts | {"process": readiness.STOPPING}
    if readiness.is_ready(parts):
        return Ready(status="ready", parts=parts)
    response.status_code = 503
    response.headers["Retry-After"] = RETRY_AFTER
    return Ready(status="not ready", parts=parts)


async def _parts(service: Service) -> dict[str, str]:
    try:
        return await service.readiness.take()
    except Unavailable as error:
        busy = " All connections of this process are in use." if service.measures.pool_is_used_up() else ""
        return readiness.unreachable(f"{error}{busy}")
