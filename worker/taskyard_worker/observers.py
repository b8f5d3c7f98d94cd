"""Plugins' observers, told of events one after the other in a thread of their own: one that hangs is noticed, and holds up no loop."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

from taskyard.notifiers import Event
from taskyard.plugins import Registry
from taskyard_worker import runs

#: Events that wait for the thread at most. Observers are promised nothing: more than these are dropped.
MAX_UNSEEN = 10_000


class Observers:
    """The thread that tells them. It starts with the first event."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._unseen: queue.Queue[dict[str, Any]] = queue.Queue(MAX_UNSEEN)
        self._thread: threading.Thread | None = None
        self._since: float | None = None
        self._dropping = False

    def tell(self, told: dict[str, Any]) -> None:
        """Have them told of an event."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="observer", daemon=True)
            self._thread.start()
        try:
            self._unseen.put_nowait(told)
            self._dropping = False
        except queue.Full:
            if not self._dropping:
                runs.log.warning("observers.too_slow", consequence="events are dropped", waiting=MAX_UNSEEN)
            self._dropping = True

    def busy_for(self) -> float:
        """Seconds since they were told of the event that they still look at; 0 if they are idle."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def _work(self) -> None:
        while True:
            told = self._unseen.get()
            self._since = time.monotonic()
            self._tell(runs.make_event(told))
            self._since = None

    def _tell(self, event: Event) -> None:
        for implementation in self._registry.hook.taskyard_task_event.get_hookimpls():
            try:
                implementation.function(*[{"event": event}[name] for name in implementation.argnames])
            except BaseException:
                # SystemExit too: it would end the thread, and no observer would be told again.
                runs.log.exception("observer.failed", plugin=implementation.plugin_name, task_id=str(event.task_id))
