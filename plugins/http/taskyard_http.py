"""The task ``http.request``: call a URL, and keep what it answered."""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

import httpx2
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl, JsonValue, StringConstraints, model_validator

from taskyard import AddressRefused, Context, Handler, Retry, RetryLater, TaskFailed, handler, hookimpl, http_client, read_limited, retry_after

MAX_TIMEOUT = 3600.0
# What decides where a message ends and who gets it is ours to say (RFC 9110 and 9112), or requests could be smuggled.
_OUR_HEADERS = {"connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"}
_TEXT_CODECS = {"ascii", "utf-8", "iso8859-1", "cp1252"}
# PostgreSQL stores no NUL, and control characters mean that this is no text.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def _check_header(name: str) -> str:
    if name.lower() in _OUR_HEADERS:
        raise ValueError(f"the header {name!r} is set by the client itself")
    return name


HeaderName = Annotated[str, StringConstraints(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}$"), AfterValidator(_check_header)]
HeaderValue = Annotated[str, StringConstraints(pattern=r"^[\t\x20-\x7e]{0,8000}$")]
Status = Annotated[int, Field(ge=100, le=599)]


class Config(BaseModel):
    """The section ``[plugins.http]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    allow_private_networks: bool = Field(False, description="Let tasks reach private, loopback and link-local addresses too.")
    max_body_bytes: int = Field(262_144, ge=0, le=64 * 1024 * 1024, description="Bytes of a response's body that are kept; the rest is not read.")
    max_redirects: int = Field(5, ge=0, le=20, description="Hops that a task which follows redirects may take.")


class Request(BaseModel):
    """What to send."""

    # One body, as the schema says it.
    model_config = ConfigDict(extra="forbid", json_schema_extra={"not": {"required": ["json", "text"], "properties": {"text": {"type": "string"}}}})

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] = "GET"
    url: HttpUrl
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict, max_length=100, json_schema_extra={"additionalProperties": False})
    json_body: JsonValue = Field(None, alias="json", description="Body as JSON; sets Content-Type unless a header does.")
    text: str | None = Field(None, description="Body as UTF-8 text. Not together with `json`.")
    timeout: float = Field(30.0, gt=0, le=MAX_TIMEOUT, description="Seconds that the whole request may take.")
    expected: list[Status] = Field(default_factory=list, max_length=100, description="Statuses that count as success. Empty: any 2xx.")
    follow_redirects: bool = Field(False, description="Follow redirects; each hop's address is checked. Headers go along within one origin only.")

    @model_validator(mode="after")
    def _one_body(self) -> Request:
        if self.text is not None and "json_body" in self.model_fields_set:
            raise ValueError("give `json` or `text`, not both")
        return self

    def content(self) -> tuple[bytes | None, dict[str, str]]:
        """The body, and the header that it brings unless the task names another."""
        if "json_body" in self.model_fields_set:
            return json.dumps(self.json_body, separators=(",", ":"), ensure_ascii=False).encode(), {"content-type": "application/json"}
        if self.text is not None:
            return self.text.encode(), {"content-type": "text/plain; charset=utf-8"}
        return None, {}


class Response(BaseModel):
    """What came back."""

    status: int
    url: str = Field(description="The address that answered, after redirects.")
    headers: dict[str, str] = Field(description="Lower-case names; repeated headers are joined by a comma.")
    body: str = Field(description="Text, or Base64 where the body is not text.")
    encoding: Literal["text", "base64"]
    truncated: bool = Field(description="The body was longer than the limit, and was cut.")
    duration: float = Field(description="Seconds from the start to the end of the body.")


@handler("http.request", retry=Retry(max_attempts=5), timeout=MAX_TIMEOUT + 60)
async def request(payload: Request, ctx: Context) -> Response:
    """Send an HTTP request and keep the response."""
    config = ctx.config or Config()
    try:
        async with asyncio.timeout(payload.timeout):
            return await _exchange(payload, config)
    except TimeoutError as error:
        raise RetryLater(f"{payload.url.host} took longer than {payload.timeout:g} s") from error
    except AddressRefused as error:
        raise TaskFailed(str(error), code="address-refused") from error
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
        raise TaskFailed(str(error), code="invalid-request") from error
    except httpx2.TooManyRedirects as error:
        raise TaskFailed(f"more than {config.max_redirects} redirects", code="too-many-redirects") from error
    except httpx2.DecodingError as error:
        raise TaskFailed(f"the body does not match its Content-Encoding: {error}", code="invalid-response") from error
    except httpx2.TransportError as error:
        raise RetryLater(f"{payload.url.host}: {error or type(error).__name__}") from error


async def _exchange(payload: Request, config: Config) -> Response:
    started = time.monotonic()
    hops = config.max_redirects if payload.follow_redirects else 0
    async with http_client(allow_private_networks=config.allow_private_networks, timeout=payload.timeout, max_redirects=hops) as client:
        client.event_hooks = {"request": [_keep_headers_home(payload)]}
        content, defaults = payload.content()
        headers = httpx2.Headers({**defaults, **{name.lower(): value for name, value in payload.headers.items()}})
        async with client.stream(payload.method, str(payload.url), headers=headers, content=content) as response:
            body, truncated = await read_limited(response, config.max_body_bytes)
    text, encoding = _as_text(body, response.charset_encoding, truncated)
    _check_status(payload, response, text if encoding == "text" else "")
    return Response(
        status=response.status_code,
        url=str(response.url),
        headers=dict(response.headers),
        body=text,
        encoding=encoding,
        truncated=truncated,
        duration=round(time.monotonic() - started, 4),
    )


def _keep_headers_home(payload: Request) -> Callable[[httpx2.Request], Awaitable[None]]:
    """A hook that takes the task's headers off a request to another origin: one of them may be a key (httpx removes Authorization only)."""
    home = httpx2.URL(str(payload.url)).origin

    async def strip(request: httpx2.Request) -> None:
        if request.url.origin != home:
            for name in payload.headers:
                request.headers.pop(name, None)

    return strip


def _check_status(payload: Request, response: httpx2.Response, text: str) -> None:
    """Raise what an unexpected status means: again later, or never."""
    status = response.status_code
    if status in payload.expected or (not payload.expected and response.is_success):
        return
    told = f"{payload.url.host} answered {status} {response.reason_phrase}".rstrip()
    if status == 429 or status >= 500:
        raise RetryLater(told, delay=retry_after(response.headers))
    raise TaskFailed(told, code="unexpected-status", status=status, body=text[:1000])


def _as_text(body: bytes, charset: str | None, truncated: bool) -> tuple[str, Literal["text", "base64"]]:
    """The body as text where it is text, else as Base64. A character that the limit cut in two is left out."""
    try:
        codec = codecs.lookup(charset or "utf-8").name
        if codec in _TEXT_CODECS:
            text = codecs.getincrementaldecoder(codec)("strict").decode(body, final=not truncated)
            if not _CONTROL.search(text):
                return text, "text"
    except (LookupError, ValueError):
        pass
    return base64.b64encode(body).decode(), "base64"


@hookimpl
def taskyard_config() -> type[BaseModel]:
    return Config


@hookimpl
def taskyard_exposes(config: Config) -> str | None:
    return "http.request reaches private networks, and what listens on the worker's own machine" if config.allow_private_networks else None


@hookimpl
def taskyard_handlers() -> Sequence[Handler[Any, Any]]:
    return [request]
