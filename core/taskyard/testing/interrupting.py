"""How the testing kit interrupts a handler at its timeouts, as a worker does."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from taskyard.errors import Interruption
from taskyard.interruptions import Interruptible, interruption

#: Seconds between two interruptions of a coroutine that goes on after its timeout.
_AGAIN = 0.5


class TimeIsUp(Exception):
    """The run's timeout passed; a handler's own TimeoutError is something else."""


async def interrupted(coroutine: Coroutine[Any, Any, Any], seconds: float, soft_timeout: float | None) -> Any:
    """What a coroutine returns. It is interrupted once at its soft timeout, and again and again after so many ``seconds``, its timeout.

    Raises:
        TimeIsUp: it raised something after its timeout. What it raises before that is raised.
    """
    handler, loop = Interruptible(coroutine), asyncio.get_running_loop()
    task, ends = loop.create_task(_told(handler)), 0

    def end() -> None:
        nonlocal ends
        ends += 1
        timers.append(loop.call_later(_AGAIN, end))
        handler.interrupt(task, "timeout")

    timers = [loop.call_later(seconds, end)]
    if soft_timeout is not None:
        timers.append(loop.call_later(soft_timeout, handler.interrupt, task, "soft-timeout", soft_timeout))
    try:
        value, raised = await task
    finally:
        for timer in timers:
            timer.cancel()
    return _judged(value, raised, ends > 0, seconds)


async def _told(handler: Interruptible) -> tuple[Any, BaseException | None]:
    # In a task of its own, as in a worker, which takes SystemExit and its kin as well.
    try:
        return await handler, None
    except BaseException as error:
        return None, error


def _judged(value: Any, raised: BaseException | None, is_up: bool, timeout: float) -> Any:
    if raised is None:
        return value
    if is_up:
        raise TimeIsUp(f"took longer than {timeout:g} s") from raised
    raise raised


def interrupted_here(function: Callable[[], Any], timeout: float, soft_timeout: float | None) -> Any:
    """What a function returns that is called in this thread. It is interrupted as by a worker, once for each of its timeouts.

    By SIGALRM: so in another thread than the main one, and where there is no SIGALRM (Windows), it is not; nor by a timeout that would come after
    an alarm that somebody else has set, such as pytest-timeout's.

    Raises:
        TimeIsUp: it raised something after its timeout. What it raises before that is raised.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return function()
    theirs, interval = signal.getitimer(signal.ITIMER_REAL)
    due: list[tuple[float, Interruption]] = [(timeout, "timeout")] if soft_timeout is None else [(soft_timeout, "soft-timeout"), (timeout, "timeout")]
    due = [one for one in due if not 0 < theirs <= one[0]]
    if not due:
        return function()
    began, is_up = time.monotonic(), False

    def left(seconds: float) -> float:
        return max(0.001, seconds - (time.monotonic() - began))

    def ring(*_: object) -> None:
        nonlocal is_up
        reason = due.pop(0)[1]
        is_up = reason == "timeout"
        if due:
            signal.setitimer(signal.ITIMER_REAL, left(due[0][0]))
        raise interruption(reason, soft_timeout)

    value: Any = None
    raised: BaseException | None = None
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, left(due[0][0]))
        value = function()
    except BaseException as error:
        raised = error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if theirs:
            signal.setitimer(signal.ITIMER_REAL, left(theirs), interval)
    return _judged(value, raised, is_up, timeout)
