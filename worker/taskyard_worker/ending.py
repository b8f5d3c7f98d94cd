"""How a run is made to end: asked first, then interrupted, then killed. Each step has its time."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from taskyard.settings import WorkerSettings
from taskyard_worker.outcomes import Reason
from taskyard_worker.processes import Child

log = structlog.get_logger(__name__)
Report = asyncio.Future[dict[str, Any] | None]

#: A healthy event loop answers within this many seconds.
RESPONSIVE = 0.5


def _polite_time(reason: Reason, worker: WorkerSettings) -> float:
    """Seconds between asking and interrupting: a cancelled sync handler may look at ``ctx.cancelled()`` in between."""
    return max(0.0, worker.cancel_grace - 2 * worker.kill_grace) if reason == "cancel" else 0.0


async def _reported(report: Report, seconds: float) -> bool:
    await asyncio.wait({report}, timeout=seconds)
    return report.done()


async def end_sync(child: Child, key: int, report: Report, reason: Reason, worker: WorkerSettings) -> None:
    """End a sync handler. Its process is its own, so the last step is safe: SIGKILL."""
    child.cancel(key, reason)
    if await _reported(report, _polite_time(reason, worker)):
        return
    child.interrupt(key, reason)
    if await _reported(report, worker.kill_grace):
        return
    child.kill()
    await _reported(report, 5.0)


async def end_async(child: Child, key: int, report: Report, reason: Reason, worker: WorkerSettings) -> None:
    """End an async handler or notifier: cancel its coroutine.

    If the event loop still answers, a coroutine that swallows its cancellation is left behind: its result is not taken, and
    it is cancelled again and again. If the loop does not answer, something blocks it: that is interrupted, or killed with the
    whole process, and the other runs in it go back in line.
    """
    child.cancel(key, reason)
    if await _reported(report, worker.kill_grace / 2 if reason != "cancel" else worker.kill_grace):
        return
    if await child.answers(key, RESPONSIVE):
        if not await _reported(report, worker.kill_grace):
            log.warning("handler.swallows_cancel", key=key)
            child.forget(key)
        return
    async with child.unblocking:
        # One after the other: a signal that comes after the loop has gone on would interrupt an innocent.
        if not report.done() and not await child.answers(key, RESPONSIVE):
            await _unblock(child, key, report, worker)
    await _reported(report, worker.kill_grace)


async def _unblock(child: Child, key: int, report: Report, worker: WorkerSettings) -> None:
    child.interrupt(key, "blocked")
    await _reported(report, worker.kill_grace)
    if not await child.answers(key, RESPONSIVE):
        log.error("async.blocked", consequence="the process that shares this event loop is killed; its other runs go back in line")
        child.spent = True
        child.kill()
        await _reported(report, 5.0)
