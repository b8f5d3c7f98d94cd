"""How a run ends whose function has raised: the one rule, for workers and for tests of plugins alike. Pure decisions.

| raised | ends as |
| --- | --- |
| ``TaskFailed`` | ``failed``: never tried again |
| ``InvalidInput`` (a child that can't be submitted) | ``failed``, as ``invalid-submission`` |
| ``UnknownTaskType`` where a plugin has failed that may bring it | ``error``, as ``invalid-submission`` |
| ``TaskCancelled``; ``CancelledError`` after it was asked to stop | ``cancelled`` |
| ``Interrupted`` | ``interrupted``: who interrupted it knows why; after a soft timeout it ends as one that raised a TimeoutError |
| ``RetryLater`` | ``error``: tried again after its delay, if attempts are left |
| anything else | ``error``: tried again by the handler's ``Retry``, if that allows it and attempts are left; else ``failed`` |

A group of exceptions (``asyncio.TaskGroup``, anyio, ``ExceptionGroup``, one in the other) ends as the most final of its parts does, in the
order of :data:`FINALITY`: what is interrupted ends; one part that can never succeed fails the task; and an unexpected error is not hidden
by a part that only asks for more time. Of several ``RetryLater`` the longest delay counts, of others the first.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from taskyard import logs, tracebacks
from taskyard.errors import Interrupted, InvalidInput, RetryLater, TaskCancelled, TaskFailed, UnknownTaskType
from taskyard.handlers import MAX_DELAY, Retry
from taskyard.masking import masked_start
from taskyard.storable import find_unstorable, storable_text, to_json

Ended = Literal["interrupted", "failed", "cancelled", "error", "later"]
#: Which of several endings decides: the first of these.
FINALITY: Final[tuple[Ended, ...]] = ("interrupted", "failed", "cancelled", "error", "later")

#: Characters of an error's code and of its other texts.
MAX_CODE = 200
MAX_TEXT = 4000


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ends that raised. ``error`` is the task's ``error``; ``delay`` (seconds) the one that it asked for; ``cause`` what decided."""

    ended: Ended
    cause: BaseException
    error: dict[str, Any] | None = None
    delay: float | None = None


def ending_of(raised: BaseException, retry: Retry, *, asked_to_stop: bool = False) -> Ending:
    """How a run ends that raised this. Never raises itself, whatever a plugin's exception does when it is looked at."""
    try:
        endings = [_ending(one, retry, asked_to_stop) for one in _parts(raised)]
        decides = min(endings, key=lambda one: FINALITY.index(one.ended))
        return decides if len(endings) == 1 and decides.cause is raised else _of_group(raised, decides, endings)
    except Exception as worse:
        message = f"Its exception can't be told: that raises {type(worse).__name__}."
        return Ending("error", raised, {"code": storable_text(type(raised).__name__, MAX_CODE), "message": message})


def _parts(raised: BaseException) -> Iterator[BaseException]:
    if isinstance(raised, BaseExceptionGroup):
        for one in raised.exceptions:
            yield from _parts(one)
    else:
        yield raised


def _ending(error: BaseException, retry: Retry, asked_to_stop: bool) -> Ending:
    match error:
        case RetryLater():
            told = {"code": storable_text(error.code, MAX_CODE), "message": storable_text(error, MAX_TEXT)}
            return Ending("later", error, told, _seconds(error.delay))
        case TaskFailed():
            return Ending("failed", error, {"message": storable_text(error, MAX_TEXT), **_plain(error.details), "code": storable_text(error.code, MAX_CODE)})
        case UnknownTaskType() if error.failed:
            # A plugin that is broken here may bring it: it may be mended by the next attempt.
            return Ending("error", error, _refused_child(error))
        case InvalidInput():
            problems = [[storable_text(part) for part in problem] for problem in error.problems]
            return Ending("failed", error, {**_refused_child(error), "problems": problems})
        case TaskCancelled():
            return Ending("cancelled", error)
        case Interrupted():
            return Ending("interrupted", error, {"code": "timeout", "message": str(error)} if error.reason == "soft-timeout" else None)
        # A handler's own: something that it waited for was cancelled, and nobody asked this run to stop.
        case asyncio.CancelledError() if asked_to_stop:
            return Ending("cancelled", error)
    return Ending("error" if retry.allows(error) else "failed", error, describe(error))


def _refused_child(error: InvalidInput) -> dict[str, Any]:
    """The ``error`` of a task whose handler asked for a child that can't be: what is wrong with it, and the line that asked."""
    message = storable_text(error, MAX_TEXT)
    if not isinstance(error, UnknownTaskType) and error.problems and error.problems[0][1] not in message:
        # The log and `taskyard up` print the message alone.
        problems = "; ".join(f"{pointer}: {problem}" for pointer, problem in error.problems)
        message = storable_text(f"{message.removesuffix('.')}: {problems}", MAX_TEXT)
    return {"code": "invalid-submission", "message": message, **_where(error)}


def _where(error: BaseException) -> dict[str, str]:
    where = tracebacks.place_of(error)
    return {"where": storable_text(where, MAX_TEXT)} if where else {}


def _of_group(group: BaseException, decides: Ending, endings: list[Ending]) -> Ending:
    if decides.ended == "later":
        return max((one for one in endings if one.ended == "later"), key=lambda one: one.delay if one.delay is not None else -1.0)
    if decides.error is None or "traceback" not in decides.error:
        return decides
    unexpected = [one for one in endings if one.error and "traceback" in one.error]
    told = describe(group)
    # The place of the part that decides, and not of the first.
    told |= {"where": decides.error["where"]} if "where" in decides.error else {}
    # The group's own code and text name none of its parts.
    if len({one.error["code"] for one in unexpected if one.error}) == 1:
        told["code"] = decides.error["code"]
    if len(unexpected) == 1:
        told["message"] = decides.error["message"]
    else:
        parts = "; ".join(f"{one.error['code']}: {one.error['message']}" for one in unexpected if one.error)
        told["message"] = storable_text(f"{told['message']}: {parts}", MAX_TEXT)
    return Ending(decides.ended, decides.cause, told)


def describe(error: BaseException) -> dict[str, Any]:
    """An unexpected error as the task's ``error``: its class as the code, its text, and where it came from. Secrets that the log hides are masked."""
    return {
        "code": storable_text(type(error).__name__, MAX_CODE),
        "message": masked_start(storable_text(error), MAX_TEXT, logs.clean, logs.longest_secret()),
        **_where(error),
        "traceback": tracebacks.readable(error),
    }


def timed_out(seconds: float) -> dict[str, Any]:
    """The ``error`` of a task whose run took longer than it may."""
    return {"code": "timeout", "message": f"It ran longer than its timeout of {seconds:g} s."}


def ending_of_timeout(cause: BaseException, error: dict[str, Any], retry: Retry) -> Ending:
    """How a run ends that took too long: as one that raised a TimeoutError, as far as its policy is asked."""
    return Ending("error" if retry.allows(TimeoutError()) else "failed", cause, error)


def _seconds(delay: Any) -> float | None:
    """The delay that a plugin asked for; one that is no time leaves it to the policy."""
    try:
        seconds = float(delay)
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(0.0, seconds), MAX_DELAY) if math.isfinite(seconds) else None


def _plain(details: Mapping[str, Any]) -> dict[str, Any]:
    return {storable_text(key): value if _is_plain(value) else _shown(value) for key, value in details.items()}


def _is_plain(value: Any) -> bool:
    try:
        to_json(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return find_unstorable(value) is None


def _shown(value: Any) -> str:
    try:
        return storable_text(repr(value), MAX_TEXT)
    except Exception:
        return storable_text(value, MAX_TEXT)
