"""How long each role may take to stop, and the end of one that takes longer.

Whatever a stop waits for (a broker that takes connections and never answers, a database that hangs, a handler that can't be killed) must not
outlast the orchestrator's patience: its SIGKILL says nothing. So a thread watches each stop, and ends the process itself, with a log line that
says what it waited for. Nothing is lost by that: the tasks of a worker that ends without a word go back in line when its silence is noticed.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from taskyard.settings import Settings

log = structlog.get_logger(__name__)

#: Seconds that requests on their way get when a web process stops.
WEB_GRACE = 10.0
#: Seconds that a worker's broker connections get to close politely.
BROKER_GRACE = 3.0
#: Seconds beyond its grace that each role may take for its last statements and the end of its connections.
_MARGIN = 5.0
#: Seconds for the log line of a stop that takes too long. Where nobody reads the log, whoever writes to it waits for ever.
LAST_WORDS = 1.0
#: Exit status of a process that was ended because its stop took too long.
OVERDUE = 70


def web_budget(settings: Settings) -> float:
    """Seconds within which a web process has stopped."""
    return settings.api.drain_delay + WEB_GRACE + _MARGIN


def dispatcher_budget(settings: Settings) -> float:
    """Seconds within which a dispatcher has stopped: what it is about to publish waits for the broker at most twice."""
    return 2 * settings.broker.confirm_timeout + _MARGIN


def worker_budget(settings: Settings) -> float:
    """Seconds within which a worker has stopped: its tasks' grace, three steps to end what still runs, and twice the margin."""
    return settings.worker.stop_grace + 3 * settings.worker.kill_grace + 2 + 2 * _MARGIN


def budget(role: str, settings: Settings) -> float:
    """Seconds within which a role (``web``, ``dispatcher`` or ``worker``) has stopped."""
    return {"web": web_budget, "dispatcher": dispatcher_budget, "worker": worker_budget}[role](settings)


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """What a stop waits for. After ``seconds``, and every second from then on, ``overdue`` is called: it makes the wait end."""

    waits_for: str
    seconds: float = float("inf")
    overdue: Callable[[], None] | None = None


class StopGuard:
    """Watches one process's stop, from a thread of its own. ``budget`` is in seconds, ``step`` what the stop waits for first."""

    def __init__(self, role: str, budget: float, step: Step) -> None:
        self._role = role
        self._budget = budget
        self._step = step
        self._main = threading.main_thread().ident
        # The threads are there before they are needed: a signal handler may write to a pipe, but not start a thread.
        self._read, self._write = os.pipe()
        self._begun = threading.Event()
        threading.Thread(target=self._watch, name="stop-guard", daemon=True).start()
        threading.Thread(target=self._end, name="stop-end", daemon=True).start()

    def begin(self) -> None:
        """The stop begins now, if it has not yet. Safe in a signal handler."""
        os.write(self._write, b"x")

    def enter(self, step: Step) -> None:
        """The stop waits for something else now."""
        self._step = step

    def _watch(self) -> None:
        os.read(self._read, 1)
        self._begun.set()
        ends_at = time.monotonic() + self._budget
        watched = self._step
        overdue_at = time.monotonic() + watched.seconds
        while (now := time.monotonic()) < ends_at:
            if self._step is not watched:
                watched = self._step
                overdue_at = now + watched.seconds
            elif watched.overdue is not None and now >= overdue_at:
                # A driver may try again by itself, and wait again.
                overdue_at = now + 1.0
                self._call(watched.overdue)
            time.sleep(min(0.1, ends_at - now))
        waits_for = self._step.waits_for
        log.error("stop.overdue", role=self._role, seconds=self._budget, waits_for=waits_for, at=self._place(), consequence="the process ends now")
        logging.shutdown()
        os._exit(OVERDUE)

    def _end(self) -> None:
        """Ends the process even if the guard itself hangs."""
        self._begun.wait()
        time.sleep(self._budget + LAST_WORDS)
        os._exit(OVERDUE)

    def _call(self, overdue: Callable[[], None]) -> None:
        try:
            overdue()
        except Exception:
            log.exception("stop.step_failed", waits_for=self._step.waits_for)

    def _place(self) -> list[str]:
        """Where the main thread is, innermost call last."""
        frame = sys._current_frames().get(self._main or 0)
        return [f"{at.filename.rpartition('/')[2]}:{at.lineno} {at.name}" for at in traceback.extract_stack(frame)[-4:]] if frame else []
