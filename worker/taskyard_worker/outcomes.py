"""From a child's report to how the run ended: a pure decision."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

from taskyard.handlers import Retry
from taskyard.records import Finished

#: Why the engine ended a run, if it did.
Reason = Literal["timeout", "cancel", "stop"]


def unstarted(reason: str) -> dict[str, Any]:
    """The report of a run that has not begun and will not begin here: it goes back in line, as if it had not been claimed."""
    return {"outcome": "unstarted", "reason": reason}


def decide(id_: UUID, fence: int, attempt: int, retry: Retry, timeout: float, report: dict[str, Any] | None, reason: Reason | None) -> Finished:
    """How a run ended, from what its child reported (None: nothing, it died) and why the engine ended it (None: it did not).

    A run that succeeded just before it would have been ended has succeeded. One that answered its end with an error of any
    kind has ended for the engine's reason.
    """
    outcome = report["outcome"] if report else None
    if report and outcome == "unstarted" and reason != "cancel":
        return Finished(id_, fence, "returned", reason=report["reason"])
    if report and outcome == "succeeded":
        return Finished(id_, fence, "succeeded", result=report["result"])
    if reason == "timeout":
        error = {"code": "timeout", "message": f"It ran longer than its timeout of {timeout:g} s."}
        return Finished(id_, fence, "retry", error=error, delay=retry.delay(attempt))
    if reason == "cancel":
        return Finished(id_, fence, "cancelled")
    if reason == "stop":
        return Finished(id_, fence, "returned")
    if report is None:
        return Finished(id_, fence, "lost", error={"message": "The process that ran this task died."})
    if outcome == "failed":
        return Finished(id_, fence, "failed", error=report["error"])
    if outcome == "cancelled":
        return Finished(id_, fence, "cancelled")
    if outcome == "interrupted":
        error = {
            "code": "blocked",
            "message": "It blocked the event loop that it shares with other async handlers, or something sent SIGTERM to its process, and was interrupted.",
        }
        return Finished(id_, fence, "retry", error=error, delay=retry.delay(attempt))
    delay = report.get("delay")
    return Finished(id_, fence, "retry", error=report["error"], delay=retry.delay(attempt) if delay is None else max(0.0, float(delay)))
