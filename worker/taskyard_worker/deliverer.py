"""Sends notifications: claims a delivery, has its notifier run in the child that is there for them, records the try."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import Connection, RowMapping

from taskyard import deliveries, failpoints, metrics
from taskyard import ids as public_ids
from taskyard.database_errors import driver_words
from taskyard.deliveries import Tried
from taskyard.handlers import Retry
from taskyard.ids import PLAIN, PublicIds
from taskyard.masking import Hidden, secrets_in
from taskyard.settings import DeliverySettings, Settings
from taskyard_worker.ending import end_async
from taskyard_worker.ledger import Ledger
from taskyard_worker.ledger_requests import FOREVER
from taskyard_worker.processes import Nursery, Shared
from taskyard_worker.runs import log_fields

if TYPE_CHECKING:
    from taskyard_worker.engine import Message

log = structlog.get_logger(__name__)

#: The code of a failure that says: nothing more by this route.
GONE = "gone"


def decide(row: RowMapping, report: dict[str, Any] | None, duration: float, settings: DeliverySettings) -> Tried:
    """How a try ended, from what the child reported (None: it died)."""
    if report and report["outcome"] == "succeeded":
        return Tried(row["id"], row["fence"], "delivered", report["detail"], duration=duration)
    error = (report or {}).get("error") or {"message": "the notifier was interrupted" if report else "its process died"}
    detail = ": ".join(str(error[key]) for key in ("code", "message") if error.get(key))
    if report and report["outcome"] == "failed":
        return Tried(row["id"], row["fence"], "dead", detail, duration=duration, gone=error.get("code") == GONE)
    policy = Retry(max_attempts=settings.max_attempts, base=settings.base, factor=settings.factor, max_delay=settings.max_delay)
    asked = (report or {}).get("delay")
    # What a receiver asks for (Retry-After) counts, but no receiver puts a delivery off for years.
    delay = policy.delay(row["attempt"], random.random()) if asked is None else min(float(asked), settings.max_delay)
    return Tried(row["id"], row["fence"], "retry", detail, delay, duration)


@dataclass(eq=False, slots=True)
class Sending:
    """One try, as the child's work."""

    key: int
    job: dict[str, Any]
    report: asyncio.Future[dict[str, Any] | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def reported(self, report: dict[str, Any] | None) -> None:
        """The try is over."""
        if not self.report.done():
            self.report.set_result(report)

    def progressed(self, said: dict[str, Any]) -> None:
        """Notifiers have no progress."""

    def logged(self, said: dict[str, Any]) -> None:
        """What they log is not kept."""

    def begins(self, seconds: float) -> None:
        """Notifiers have no lifespans."""


class Deliverer:
    """Works on the deliveries' queue. Celery's prefetch count bounds how many are sent at once."""

    def __init__(self, settings: Settings, ledger: Ledger, nursery: Nursery, tellers: Shared) -> None:
        self._settings = settings
        self._ledger = ledger
        self._nursery = nursery
        self._tellers = tellers
        self._ids = PLAIN

    async def deliver(self, message: Message) -> None:
        """Send the deliveries that a message names. Whatever happens, the message is settled: each that is not takes a place in the
        prefetch for ever.
        """
        ids = [int(id_) for id_ in message.ids]
        try:
            rows = await self._claim(ids)
            if rows:
                failpoints.hit("delivery.claimed")
                message.started()
            results = await asyncio.gather(*(self._send(row) for row in rows))
            for state in [*results, *["ignored"] * (len(ids) - len(rows))]:
                message.settle(state)
        finally:
            message.settle_all("error")

    async def _claim(self, ids: list[int]) -> Sequence[RowMapping]:
        # The lease outlives the try, so that no second sender starts while this one may still be sending.
        lease = self._settings.deliveries.timeout * 2 + 10

        def claim(connection: Connection) -> tuple[Sequence[RowMapping], PublicIds]:
            rows = deliveries.claim(connection, ids, lease)
            # Once numbers are hidden they stay so. In one transaction: what is claimed and not sent has spent a try.
            return rows, public_ids.of(connection) if rows and self._ids.secret is None else self._ids

        try:
            rows, self._ids = await self._ledger.call(claim)
        except Exception as error:
            log.warning("delivery.not_claimed", error=driver_words(error), count=len(ids))
            return []
        claimed: Sequence[RowMapping] = rows
        return claimed

    async def _send(self, row: RowMapping) -> str:
        structlog.contextvars.bind_contextvars(**log_fields(_job(row, self._ids)))
        try:
            return await self._try(row)
        except Exception:
            # It is due again when its lease is over, and counts as a failed try.
            log.exception("delivery.error")
            return "error"

    async def _try(self, row: RowMapping) -> str:
        started = time.monotonic()
        report = await self._report(row)
        failpoints.hit("delivery.sent")
        tried = decide(row, report, time.monotonic() - started, self._settings.deliveries)
        if row["options"] is not None:
            # A route's secrets are the operator's, who reads this; a subscription's are a client's.
            hidden = Hidden()
            hidden.add(secrets_in(row["options"]))
            tried = replace(tried, detail=hidden.clean(tried.detail))
        saved = await self._finish(row, tried)
        failpoints.hit("delivery.finished")
        status: str = saved[0]["status"] if saved else "stale"
        self._count(row["notifier"], status)
        if tried.gone and saved:
            log.error("route.switched_off", reason=tried.detail[:200], until="its configuration changes, or `taskyard notifiers enable`")
        log.info("delivery." + status, event_type=row["event"], detail=tried.detail[:200])
        return status

    async def _report(self, row: RowMapping) -> dict[str, Any] | None:
        key = self._nursery.next_key()
        sending = Sending(key, {**_job(row, self._ids), "key": key})
        child = await self._tellers.get()
        child.start([sending])
        # The child ends the try itself; this is for one whose event loop is blocked, or that swallows its end.
        await asyncio.wait({sending.report}, timeout=self._settings.deliveries.timeout + 2)
        if not sending.report.done():
            await end_async(child, sending.key, sending.report, "timeout", self._settings.worker)
            child.forget(sending.key)
            return {"outcome": "error", "error": {"code": "timeout", "message": "the notifier did not answer in time"}}
        return sending.report.result()

    async def _finish(self, row: RowMapping, tried: Tried) -> Sequence[RowMapping]:
        try:
            return await self._record(tried)
        except Exception as error:
            # PostgreSQL refused what the notifier left. The try must end all the same.
            report = {"outcome": "error", "error": {"code": "unstorable", "message": f"PostgreSQL refused the notifier's answer: {type(error).__name__}"}}
            return await self._record(decide(row, report, tried.duration, self._settings.deliveries))

    async def _record(self, tried: Tried) -> Sequence[RowMapping]:
        attempts = self._settings.deliveries.max_attempts
        rows: Sequence[RowMapping] = await self._ledger.call(lambda connection: deliveries.finish(connection, [tried], attempts), patience=FOREVER)
        return rows

    def _count(self, notifier: str, status: str) -> None:
        if status == "stale":
            self._ledger.tally.count(metrics.STALE, "deliver")
        else:
            self._ledger.tally.count(metrics.DELIVERIES, notifier, "failed" if status == "pending" else status)


def _job(row: RowMapping, ids: PublicIds) -> dict[str, Any]:
    """A delivery for its notifier, with numbers as the outside world sees them."""
    shown = {"id": ids.hide(row["id"]), "event_id": ids.hide(row["event_id"])}
    return {**row, **shown, "kind": "delivery", "time": row["time"].isoformat(), "task_id": str(row["task_id"])}
