"""Names the task that blocks an event loop: all tasks of the loop stand still meanwhile, and nothing else would say why."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import structlog

from taskyard import tracebacks

log = structlog.get_logger(__name__)

#: How often within the threshold the loop is asked for an answer.
_LOOKS = 4


class LoopWatch:
    """A thread that asks an event loop for an answer, again and again; for the loop that is one callback each time.

    ``whose`` says whose step a task of asyncio's is, as fields of a log line; ``tell`` is called in the loop after a block, with the type of
    Taskyard's task (empty: nobody knows) and the number of seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        threshold: float,
        whose: Callable[[asyncio.Task[Any]], Mapping[str, str]],
        tell: Callable[[str, float], None],
    ) -> None:
        self._loop = loop
        self._whose = whose
        self._threshold = threshold
        self._tell = tell
        self._thread = threading.get_ident()

    def start(self) -> None:
        """Watch the loop of the calling thread until the process ends."""
        threading.Thread(target=self._watch, name="loop watch", daemon=True).start()

    def _watch(self) -> None:
        pause = self._threshold / _LOOKS
        while True:
            time.sleep(pause)
            answered, asked_at = threading.Event(), time.monotonic()
            try:
                self._loop.call_soon_threadsafe(answered.set)
            except RuntimeError:
                # The loop is closed.
                return
            if not answered.wait(self._threshold):
                self._blocked(answered, asked_at)

    def _blocked(self, answered: threading.Event, asked_at: float) -> None:
        frame = sys._current_frames().get(self._thread)
        fields = self._fields()
        if not fields and (frame is None or _is_waiting(frame)):
            # It waits for events: the whole process stood still, and goes on now.
            return
        stack = tracebacks.readable_stack(frame) if frame is not None else ""
        consequence = "all async tasks of this process stand still; call what blocks in a thread, or make the handler sync"
        log.warning("async.blocked", **fields, seconds=round(time.monotonic() - asked_at, 1), stack=stack, consequence=consequence)
        answered.wait()
        seconds = time.monotonic() - asked_at
        log.warning("async.goes_on", **fields, seconds=round(seconds, 1))
        try:
            self._loop.call_soon_threadsafe(self._tell, str(fields.get("type", "")), seconds)
        except RuntimeError:
            return

    def _fields(self) -> dict[str, Any]:
        """Whose step the loop is in."""
        current: Any = asyncio.current_task(self._loop)
        if current is None:
            return {}
        if known := self._whose(current):
            return dict(known)
        # A task that a handler has started inherits what is bound to the handler's log lines. Tasks tell their context from Python 3.12 on.
        context = current.get_context() if hasattr(current, "get_context") else None
        found = context.copy().run(structlog.contextvars.get_contextvars) if context is not None else {}
        return {name: found[name] for name in ("task_id", "type") if name in found}


def _is_waiting(frame: FrameType) -> bool:
    return frame.f_code.co_name == "select" and frame.f_globals.get("__name__") == "selectors"
