"""From a child's report to how the run ended: a pure decision."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

from taskyard.handlers import Retry
from taskyard.outcomes import timed_out
from taskyard.records import Finished

#: Why the engine ended a run, if it did.
Reason = Literal["timeout", "cancel", "stop"]
#: What the database is told: see lifecycle.finish.
Outcome = Literal["succeeded", "failed", "cancelled", "retry", "returned", "parked", "lost"]
_REASONS: dict[Reason, Outcome] = {"timeout": "retry", "cancel": "cancelled", "stop": "returned"}
#: What a child says that stands as it is; every other word means that the handler raised.
_SAID: dict[str, Outcome] = {"failed": "failed", "cancelled": "cancelled", "lost": "lost"}


def unstarted(reason: str) -> dict[str, Any]:
    """The report of a run that has not begun and will not begin here: it goes back in line, as if it had not been claimed."""
    return {"outcome": "unstarted", "reason": reason}


def parked(reason: str) -> dict[str, Any]:
    """The report of a run that could not begin, and that would not begin at once either: it waits, and spends no attempt."""
    return {"outcome": "parked", "reason": reason}


def outcome_of(report: dict[str, Any] | None, reason: Reason | None) -> Outcome:
    """How a run ended, from what its child reported (None: nothing, it died) and why the engine ended it (None: it did not).

    A run that succeeded just before it would have been ended has succeeded. One that answered its end with an error of any
    kind has ended for the engine's reason.
    """
    said = report["outcome"] if report else "lost"
    if said == "unstarted" and reason != "cancel":
        return "returned"
    if said == "succeeded":
        return "succeeded"
    if said == "parked" and reason in (None, "timeout"):
        return "parked"
    if reason is not None:
        return _REASONS[reason]
    return _SAID.get(said, "retry")


def shown(report: dict[str, Any] | None, reason: Reason | None, *, last_attempt: bool, last_loss: bool) -> str:
    """How the end of a run looks to those who watch Celery: ``retrying`` if the task goes on. PostgreSQL decides, a moment later; a cancel may
    end instead what is shown as retrying."""
    outcome = outcome_of(report, reason)
    if outcome == "retry":
        return "failed" if last_attempt else "retrying"
    if outcome == "lost":
        return "failed" if last_loss else "retrying"
    return outcome


def decide(
    id_: UUID,
    fence: int,
    attempt: int,
    retry: Retry,
    timeout: float,
    report: dict[str, Any] | None,
    reason: Reason | None,
    *,
    death: str = "",
    park_delay: float = 0.0,
) -> Finished:
    """What is recorded of a run that ended so: see :func:`outcome_of`. ``death`` is what its process died of, if that is known; ``park_delay`` are
    the seconds that a parked task waits."""
    outcome = outcome_of(report, reason)
    if outcome == "returned":
        return Finished(id_, fence, "returned", reason=report["reason"] if report and report["outcome"] == "unstarted" else None)
    if outcome == "cancelled":
        return Finished(id_, fence, "cancelled")
    if outcome == "parked":
        return Finished(id_, fence, "parked", reason=report["reason"] if report else None, delay=park_delay)
    if report is None and outcome == "lost":
        return Finished(id_, fence, "lost", error={"message": f"The process that ran this task died{f': {death}' if death else ''}."})
    if reason == "timeout" and outcome == "retry":
        return _overdue(id_, fence, attempt, retry, timed_out(timeout))
    assert report is not None, "without a report it is lost, or has ended for the engine's reason"
    if outcome == "succeeded":
        return Finished(id_, fence, "succeeded", result=report["result"])
    if outcome == "failed":
        return Finished(id_, fence, "failed", error=report["error"])
    if report["outcome"] == "interrupted":
        error = report.get("error") or {
            "code": "blocked",
            "message": "It blocked the event loop that it shares with other async handlers, or something sent SIGTERM to its process, and was interrupted.",
        }
        return _overdue(id_, fence, attempt, retry, error)
    delay = report.get("delay")
    return Finished(id_, fence, "retry", error=report["error"], delay=retry.delay(attempt) if delay is None else max(0.0, float(delay)))


def _overdue(id_: UUID, fence: int, attempt: int, retry: Retry, error: dict[str, Any]) -> Finished:
    """A run that took too long has raised a TimeoutError, as far as its policy is asked."""
    if retry.allows(TimeoutError()):
        return Finished(id_, fence, "retry", error=error, delay=retry.delay(attempt))
    return Finished(id_, fence, "failed", error=error)
