"""The read side of deliveries: filters, and cursor pages by index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, and_, func, select

from taskyard import cursors
from taskyard.deliveries import ENDED
from taskyard.errors import NotFound
from taskyard.ids import PLAIN, PublicIds
from taskyard.queries import Page, merged, number_of, page_of, within
from taskyard.tables import DELIVERY_STATUSES, deliveries, events

#: Ids are drawn in the order of time, but for the length of the transactions that draw them. None is longer than this.
_LONGEST = timedelta(hours=1)
_EVENT = func.coalesce(deliveries.c.event, events.c.type).label("event")
_COLUMNS = [column for column in deliveries.c if column.name != "event"]


@dataclass(frozen=True, slots=True)
class DeliveryFilters:
    """Which deliveries. Different filters must all hold; of several values of one filter, any may.

    ``created_after`` is included, ``created_before`` is not.
    """

    status: tuple[str, ...] = ()
    route: tuple[str, ...] = ()
    notifier: tuple[str, ...] = ()
    event: tuple[str, ...] = ()
    task_id: UUID | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


def list_deliveries(
    connection: Connection, namespace: str | None, filters: DeliveryFilters, limit: int, cursor: str | None = None, ids: PublicIds = PLAIN
) -> Page:
    """One page of deliveries of a namespace, or (None) of all, newest first, each with its event's type. Raises InvalidInput for a wrong cursor."""
    bound_to = ["deliveries", namespace, asdict(filters)]
    before = None if cursor is None else ids.reveal(number_of(cursors.decode(cursor, bound_to)))
    newest = _newest(connection, namespace, filters, limit + 1, before).subquery()
    rows = connection.execute(_with_events().where(deliveries.c.id.in_(select(newest.c.id))).order_by(deliveries.c.id.desc())).all()
    return page_of(rows, limit, lambda row: ids.hide(row.id).to_bytes(8), bound_to)


def delivery(connection: Connection, namespace: str, delivery_id: int, ids: PublicIds = PLAIN) -> Row[Any]:
    """One delivery. Raises NotFound."""
    found = connection.execute(_with_events().where(deliveries.c.id == delivery_id, deliveries.c.namespace == namespace)).first()
    if found is None:
        raise NotFound(f"There is no delivery {ids.hide(delivery_id)} here.")
    return found


def namespace_of_delivery(connection: Connection, delivery_id: int) -> str | None:
    """The namespace that a delivery is in; None if there is no such delivery."""
    found: str | None = connection.execute(select(deliveries.c.namespace).where(deliveries.c.id == delivery_id)).scalar()
    return found


def matching(connection: Connection, namespace: str, filters: DeliveryFilters, limit: int, before: int | None = None) -> Sequence[Row[Any]]:
    """The id and status of up to ``limit`` deliveries, newest first, from before an id on."""
    return connection.execute(_newest(connection, namespace, filters, limit, before)).all()


def _newest(connection: Connection, namespace: str | None, filters: DeliveryFilters, limit: int, before: int | None) -> Any:
    conditions = _conditions(filters)
    if before is not None:
        conditions.append(deliveries.c.id < before)
    chosen = select(deliveries.c.id, deliveries.c.status)
    branches = []
    for inside in within(connection, deliveries.c.namespace, namespace):
        bounds = [inside, *_bounds(connection, inside, filters)]
        branches += [chosen.where(*bounds, *conditions, branch).order_by(deliveries.c.id.desc()).limit(limit) for branch in _branches(filters)]
    return merged(branches, limit)


def _with_events() -> Any:
    return select(*_COLUMNS, _EVENT).join(events, events.c.id == deliveries.c.event_id)


def _conditions(filters: DeliveryFilters) -> list[ColumnElement[bool]]:
    columns = {"status": filters.status, "route": filters.route, "notifier": filters.notifier, "event": filters.event}
    found: list[ColumnElement[bool]] = [deliveries.c[name].in_(values) for name, values in columns.items() if values]
    if filters.task_id is not None:
        found.append(deliveries.c.task_id == filters.task_id)
    if filters.created_after is not None:
        found.append(deliveries.c.created_at >= filters.created_after)
    if filters.created_before is not None:
        found.append(deliveries.c.created_at < filters.created_before)
    return found


def _branches(filters: DeliveryFilters) -> list[ColumnElement[bool]]:
    """Disjoint conditions, each of which reads one index newest first: that of the filter that commonly leaves the least."""
    if filters.task_id is not None:
        return [deliveries.c.id.is_not(None)]
    if filters.status:
        ended = [and_(deliveries.c.next_try_at.is_(None), deliveries.c.status == status) for status in ENDED if status in filters.status]
        live = [status for status in DELIVERY_STATUSES if status in filters.status and status not in ENDED]
        return ended + ([deliveries.c.next_try_at.is_not(None)] if live else [])
    for name, values in (("route", filters.route), ("event", filters.event), ("notifier", filters.notifier)):
        if values:
            return [deliveries.c[name] == value for value in dict.fromkeys(values)]
    return [deliveries.c.id.is_not(None)]


def _bounds(connection: Connection, inside: ColumnElement[bool], filters: DeliveryFilters) -> list[ColumnElement[bool]]:
    """What the times say of the ids. It selects nothing more or less; it lets PostgreSQL begin and end at the right place of an index."""
    at, found = deliveries.c.created_at, []
    ours = select(deliveries.c.id).where(inside).limit(1)
    if filters.created_before is not None:
        later = connection.execute(ours.where(at >= filters.created_before + _LONGEST).order_by(at)).scalar()
        found += [] if later is None else [deliveries.c.id < later]
    if filters.created_after is not None:
        earlier = connection.execute(ours.where(at < filters.created_after - _LONGEST).order_by(at.desc())).scalar()
        found += [] if earlier is None else [deliveries.c.id > earlier]
    return found
