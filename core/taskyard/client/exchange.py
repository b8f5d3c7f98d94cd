"""One request and its answer: put together, sent, repeated where that is safe, and read."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from taskyard.client.errors import UnexpectedAnswer, Unreachable, problem_of
from taskyard.client.retries import NEVER_SENT, Retries, may_repeat_error, may_repeat_status
from taskyard.client.wires import Wire
from taskyard.errors import ConfigurationError, InvalidInput
from taskyard.outbound import retry_after
from taskyard.settings import is_loopback

T = TypeVar("T")
DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class Call:
    """What to ask of the service. ``safe``: to ask twice does no harm. ``timeout`` is in seconds; None is the client's."""

    method: str
    path: tuple[str, ...]
    body: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    safe: bool = False
    timeout: httpx2.Timeout | None = None


def get(*path: object, params: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None, timeout: httpx2.Timeout | None = None) -> Call:
    """A call that only reads."""
    return Call("GET", tuple(map(str, path)), params=params or {}, headers=headers or {}, safe=True, timeout=timeout)


def check_url(url: str) -> str:
    """The address of a service, without a slash at its end. Raises ConfigurationError: it is none."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment) and (parts.port or 1) > 0
    except ValueError:
        fine = False
    if not fine:
        raise ConfigurationError(f"{url}: expected an address such as {DEFAULT_URL}")
    return url.rstrip("/")


def check_key(key: str) -> str:
    """An access key that can be sent. Raises ConfigurationError, without the key: it can't."""
    if key and not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ConfigurationError("The access key has a character that none has; expected one such as `taskyard keys create` shows, ty_...")
    return key


def http_options(url: str, key: str, timeout: float) -> dict[str, Any]:
    """How HTTPX talks to the service at an address: the same for both of its clients."""
    headers = {"Accept": "application/json", "User-Agent": "taskyard-client"} | ({"Authorization": f"Bearer {key}"} if key else {})
    # A proxy from the environment can't reach this machine's loopback.
    return {"base_url": f"{url}/api/v1/", "headers": headers, "timeout": timeout, "trust_env": not is_loopback(urlsplit(url).hostname or "")}


@dataclass(frozen=True, slots=True)
class Exchange:
    """The service at one address."""

    wire: Wire
    url: str
    retries: Retries

    async def ask(self, call: Call, kind: TypeAdapter[T]) -> T:
        """A call's answer, typed. Raises ClientError."""
        return self.read(await self.perform(call), kind)

    async def perform(self, call: Call, *, stream: bool = False) -> httpx2.Response:
        """A call's answer, which is no error. Raises ClientError; InvalidInput: the call can't be sent at all."""
        content = _content(call.body)
        for made in itertools.count(1):
            try:
                response = await self.wire.send(self._request(call, content), stream=stream)
                if response.is_success:
                    return response
                await self.wire.read(response)
            except httpx2.RequestError as error:
                pause = self.retries.pause(made) if may_repeat_error(error, safe=call.safe) else None
                if pause is None:
                    raise self._unreachable(error) from error
            else:
                await self.wire.discard(response)
                asked = retry_after(response.headers)
                pause = self.retries.pause(made, asked) if may_repeat_status(response.status_code, safe=call.safe) else None
                if pause is None:
                    raise self._refusal(response, asked)
            await self.wire.sleep(pause)
        raise AssertionError("the tries never end by themselves")

    def read(self, response: httpx2.Response, kind: TypeAdapter[T]) -> T:
        """The body of an answer. Raises UnexpectedAnswer: it is not Taskyard's."""
        try:
            return kind.validate_json(response.content)
        except ValidationError as error:
            raise self._strange(response) from error

    def _request(self, call: Call, content: str | None) -> httpx2.Request:
        headers = {**({"Content-Type": "application/json"} if content is not None else {}), **call.headers}
        options: dict[str, Any] = {} if call.timeout is None else {"timeout": call.timeout}
        try:
            path = "/".join(quote(part, safe="") for part in call.path)
            return self.wire.http.build_request(call.method, path, content=content, params=call.params or None, headers=headers, **options)
        except UnicodeError as error:
            raise InvalidInput(f"A word of the call can't be sent: {str(error)[:200]}") from error

    def _refusal(self, response: httpx2.Response, asked: float | None) -> Exception:
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict) or "title" not in document:
            return self._strange(response)
        return problem_of(response.status_code, document, asked)

    def _strange(self, response: httpx2.Response) -> UnexpectedAnswer:
        message = f"{response.request.url} answered {response.status_code}, and not as Taskyard does. Is this its address?"
        return UnexpectedAnswer(message, status=response.status_code)

    def _unreachable(self, error: httpx2.RequestError) -> Unreachable:
        sent = not isinstance(error, NEVER_SENT)
        if isinstance(error, httpx2.ConnectError):
            return Unreachable(f"Nothing answers at {self.url} ({error}).", sent=sent)
        return Unreachable(f"The call to {self.url} failed: {error or type(error).__name__}", sent=sent)


def _content(body: Any) -> str | None:
    """A body as JSON: in ASCII, and leniently, because the service says what is wrong with a value (a lone surrogate, NaN), with its place.

    Raises:
        InvalidInput: it has something that is no JSON, or it contains itself.
    """
    try:
        return None if body is None else json.dumps(body, default=to_jsonable_python)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"The call can't be sent as JSON: {error}") from error
