"""Celery's remote control, as Flower's buttons send it: what a worker of ours does, and what it refuses.

Celery's own commands would do harm here. A revoke would drop the hint and leave its task queued for ever; a rate limit would hold up hints of
every type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import structlog
from celery.utils.functional import maybe_list
from celery.worker.control import Panel, nok, ok

log = structlog.get_logger(__name__)

_RESTART: Final = "A worker's {0} are fixed while it runs: set {1} and restart it."
_PROCESSES: Final = _RESTART.format("processes", "worker.processes (or --processes)")
_QUEUES: Final = _RESTART.format("queues", "worker.queues (or --queues)")
_PAUSE: Final = "`taskyard queues pause NAME` stops a queue."
#: What is refused, and what to do instead.
REFUSED: Final[Mapping[str, str]] = {
    "pool_grow": _PROCESSES,
    "pool_shrink": _PROCESSES,
    "autoscale": _PROCESSES,
    "pool_restart": "A worker loads its plugins once: restart the worker.",
    "add_consumer": _QUEUES,
    "cancel_consumer": f"{_QUEUES} {_PAUSE}",
    "rate_limit": f"Messages are hints for tasks of all types, so a rate would hold up every type. {_PAUSE}",
    "time_limit": "A task has its own timeout: set it at the handler, or when the task is submitted.",
    "revoke_by_stamped_headers": "Messages have no stamps: revoke a task by its id.",
    "terminate_by_stamped_headers": "Messages have no stamps: terminate a task by its id.",
}


def register() -> None:
    """Put our commands in the place of Celery's, for all workers of this process."""
    for name, why in REFUSED.items():
        Panel.register(name=name, help=f"Refused: {why}")(_refusing(name, why))
    Panel.register(name="revoke", help="Cancel tasks by id.")(_revoke)
    Panel.register(name="terminate", help="Cancel tasks by id, as revoke does.")(_terminate)


def _refusing(name: str, why: str) -> Any:
    def refuse(state: Any, *_: Any, **arguments: Any) -> dict[str, str]:
        log.warning("remote.refused", command=name, reason=why)
        return dict(nok(why))

    return refuse


def _revoke(state: Any, task_id: str | Iterable[str], terminate: bool = False, signal: str | None = None, **_: Any) -> dict[str, str]:
    """A running task is asked to stop, whether it is to be terminated or not, and by no signal: worker.cancel_grace is its time."""
    names = [str(name) for name in maybe_list(task_id) or ()]
    unknown = state.consumer.pool.revoke(names)
    if unknown:
        why = f"No task, and no message that this worker holds: {', '.join(unknown)[:500]}"
        log.warning("remote.refused", command="revoke", reason=why)
        return dict(nok(why))
    return dict(ok(f"{len(names)} to be cancelled: see Taskyard for how each ends"))


def _terminate(state: Any, signal: str | None = None, task_id: str | Iterable[str] = (), **_: Any) -> dict[str, str]:
    return _revoke(state, task_id)
