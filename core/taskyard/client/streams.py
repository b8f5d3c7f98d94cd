"""Streams that outlive their connections, and lists that outlive their pages."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import httpx2
from pydantic import TypeAdapter

from taskyard.client.errors import UnexpectedAnswer
from taskyard.client.exchange import Exchange, get
from taskyard.client.models import Event, Page

T = TypeVar("T")
#: Seconds of silence after which a stream is taken for dead: the service says something every 15.
SILENCE = 45.0
ITEMS = 200
# An event's number, as it stands alone in a list and in a stream, and as a CloudEvent writes it.
_NUMBER = re.compile(r"(?:evt_)?(\d{1,19})")


class _Place:
    """How far a stream was read, and how long to wait before the next connection."""

    def __init__(self, after: str | None) -> None:
        self.last = None if after is None else number(after)
        self.ended = False
        self.asked = 0.0
        self.cuts = 0

    def take(self, message: httpx2.ServerSentEvent) -> Event | None:
        """The event in a message; None: it has none, or one that was taken before."""
        if message.retry is not None:
            self.asked = message.retry / 1000
        if message.event == "error" or not message.data:
            return None
        event = _event(message)
        if message.id.isdecimal():
            # Numbers have no order: the service sends nothing again but, at most, the last one.
            if int(message.id) == self.last:
                return None
            self.last = int(message.id)
        self.ended, self.cuts = event.ends, 0
        return event


def number(event_id: str) -> int:
    """The number in an event's id. Raises ValueError: it is none."""
    found = _NUMBER.fullmatch(event_id)
    if not found:
        raise ValueError(f"{event_id!r} is not the id of an event; expected one that was received, such as 4711")
    return int(found[1])


def _event(message: httpx2.ServerSentEvent) -> Event:
    """A CloudEvent as an event of a history: the same fields, whichever way it came."""
    try:
        outer: Any = message.json()
        data = dict(outer["data"])
        namespace = str(outer.get("source", "")).rpartition("/")[2] or None
        head = {"id": message.id or outer["id"], "namespace": namespace, "type": outer["type"], "time": outer["time"]}
        return Event.model_validate({**head, "task_id": data.pop("task_id"), "attempt": data.pop("attempt"), "task": data.pop("task", None), "data": data})
    except (ValueError, LookupError, TypeError) as error:
        raise UnexpectedAnswer(f"The stream has sent what is no event: {message.data[:200]}") from error


async def follow(exchange: Exchange, path: tuple[str, ...], params: Mapping[str, Any], after: str | None) -> AsyncGenerator[Event, None]:
    """Events as they happen, each once and none left out, however often the connection is cut. It ends where the service says so (204).

    Raises:
        ClientError: the service refuses, or can't be reached any more.
    """
    place = _Place(after)
    while True:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(place.last)} if place.last is not None else {})
        timeout = httpx2.Timeout(SILENCE, connect=10.0)
        response = await exchange.perform(get(*path, params=params, headers=headers, timeout=timeout), stream=True)
        try:
            if response.status_code == 204:
                return
            async with aclosing(exchange.wire.messages(response)) as messages:
                async for message in messages:
                    if (event := place.take(message)) is not None:
                        yield event
            # The end of a task is the end of its stream: the service is asked at once whether there is more to come.
            pause = 0.0 if place.ended else place.asked
        except httpx2.SSEError as error:
            raise UnexpectedAnswer(f"{response.request.url} answers with no stream of events. Is this Taskyard's address?") from error
        except httpx2.TransportError:
            # A stream that is cut is no failure as long as the next one begins; one that can't begin has its own, bounded, tries.
            place.cuts += 1
            pause = exchange.retries.pause(min(place.cuts, max(exchange.retries.most, 1))) or exchange.retries.first
        finally:
            await exchange.wire.discard(response)
        await exchange.wire.sleep(pause)


async def items(exchange: Exchange, path: tuple[str, ...], params: Mapping[str, Any], kind: TypeAdapter[Page[T]]) -> AsyncGenerator[T, None]:
    """The items of all pages of a list. The next page is asked for when it is needed."""
    cursor: dict[str, str] = {}
    while True:
        page = await exchange.ask(get(*path, params={"limit": ITEMS, **params, **cursor}), kind)
        for item in page.items:
            yield item
        if page.next_cursor is None:
            return
        cursor = {"cursor": page.next_cursor}
