"""Calls to the REST service for commands: JSON in and out, problem documents as sentences."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import httpx2
import typer

from taskyard.errors import TaskyardError

Url = Annotated[str, typer.Option("--url", envvar="TASKYARD_URL", help="Address of the service.")]
Key = Annotated[str, typer.Option("--key", envvar="TASKYARD_KEY", help="Access key, where the service asks for one.", show_envvar=True)]
DEFAULT_URL = "http://127.0.0.1:8000"
#: Seconds that a call may take.
TIMEOUT = 30.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ServiceError(TaskyardError):
    """The service refused, or could not be reached."""


class Service:
    """The REST service at one address. Use it as a context manager."""

    def __init__(self, url: str, key: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServiceError(f"--url {url}: expected an address such as {DEFAULT_URL}")
        self.url = url
        if key and not re.fullmatch(r"[\x21-\x7e]+", key):
            raise ServiceError("--key: expected an access key such as `taskyard keys create` shows, ty_...")
        # A proxy from the environment can't reach this machine's loopback.
        self._client = httpx2.Client(
            base_url=url.rstrip("/") + "/api/v1/",
            timeout=TIMEOUT,
            trust_env=parts.hostname not in LOOPBACK,
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def call(
        self,
        method: str,
        *path: str,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = TIMEOUT,
    ) -> Any:
        """The answer's JSON; ``body`` is sent as JSON. ``timeout`` is in seconds; None waits for as long as it takes.

        Raises:
            ServiceError: nothing answers there, or the answer is an error.
        """
        target = "/".join(quote(part, safe="") for part in path)
        # In ASCII, and leniently: what is wrong with it (a lone surrogate, NaN) is the service's to say, with its place.
        content = None if body is None else json.dumps(body)
        try:
            sent = {**({"Content-Type": "application/json"} if content else {}), **(headers or {})}
            answer = self._client.request(method, target, content=content, params=params, headers=sent, timeout=timeout)
        except httpx2.ConnectError as error:
            raise ServiceError(
                f"Nothing answers at {self.url} ({error}). Start the service with `taskyard up`, or name its address with --url or TASKYARD_URL."
            ) from error
        except httpx2.TransportError as error:
            raise ServiceError(f"The call to {self.url} failed: {error or type(error).__name__}") from error
        return _read(answer)

    def events(self, task_id: str, cursor: str | None = None) -> tuple[list[dict[str, Any]], str | None]:
        """A task's events from a cursor on, and the last page's cursor: read on from there to see what is new."""
        items: list[dict[str, Any]] = []
        while True:
            page = self.call("GET", "tasks", task_id, "events", params={"limit": 200} | ({"cursor": cursor} if cursor else {}))
            items += page["items"]
            if not page.get("next_cursor"):
                return items, cursor
            cursor = page["next_cursor"]

    def follow(self, task_id: str) -> Iterator[dict[str, Any]]:
        """The task again and again until it has ended; the last one has ended. The pauses grow from 0.1 s to 2 s."""
        pause = 0.1
        while True:
            task = self.call("GET", "tasks", task_id)
            yield task
            if task.get("finished_at"):
                return
            time.sleep(pause)
            pause = min(2.0, pause * 1.3)


def _read(answer: httpx2.Response) -> Any:
    try:
        body = answer.json()
    except ValueError:
        body = None
    if answer.is_success and body is not None:
        return body
    if not isinstance(body, dict) or "title" not in body:
        raise ServiceError(f"{answer.request.url} answered {answer.status_code}, and not as Taskyard does. Is this its address?")
    lines = [f"{body['title']}: {body['detail']}" if body.get("detail") else str(body["title"])]
    lines += [f"  {item.get('pointer')}: {item.get('detail')}" for item in body.get("errors") or ()]
    raise ServiceError("\n".join(lines))
