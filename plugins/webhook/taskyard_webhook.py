"""The notifier ``webhook``: posts each event as a CloudEvent, signed as Standard Webhooks says."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Self

import httpx2
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl, SecretStr, model_validator
from standardwebhooks import Webhook as Signer

from taskyard import AddressRefused, DeliveryContext, Event, RetryLater, TaskFailed, hookimpl, http_client, retry_after

PREFIX = "whsec_"
MIN_KEY_BYTES = 16


def _check_secret(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.startswith(PREFIX) or len(key) < MIN_KEY_BYTES:
        raise ValueError(f"expected {PREFIX} followed by Base64 of at least {MIN_KEY_BYTES} random bytes (24 to 64 are usual)")
    return secret


Secret = Annotated[SecretStr, AfterValidator(_check_secret)]


class Config(BaseModel):
    """The section ``[plugins.webhook]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    allow_private_networks: bool = Field(False, description="Let routes reach private, loopback and link-local addresses too.")


class WebhookOptions(BaseModel):
    """A route's options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: HttpUrl = Field(description="Where to post.")
    secret: Secret | None = Field(None, description="Signing secret, shared with the receiver: whsec_ and Base64.")
    secrets: tuple[Secret, ...] = Field((), max_length=5, description="Several, while the receiver changes from one to another: each signs.")
    timeout: float = Field(15.0, gt=0, le=300, description="Seconds that the receiver may take to answer.")

    @model_validator(mode="after")
    def _check_secrets(self) -> Self:
        if not self.signers():
            raise ValueError("expected secret, or secrets: a receiver must be able to tell who calls")
        return self

    def signers(self) -> list[str]:
        """All the secrets that sign, each once."""
        given = [self.secret, *self.secrets] if self.secret else list(self.secrets)
        return list(dict.fromkeys(secret.get_secret_value() for secret in given))


class Webhook:
    """Post each event as a CloudEvent, signed by Standard Webhooks."""

    name: ClassVar[str] = "webhook"
    Options: ClassVar[type[BaseModel]] = WebhookOptions

    async def send(self, event: Event, options: WebhookOptions, ctx: DeliveryContext) -> str:
        """One try: any 2xx is a delivery, 410 means never again, everything else another try."""
        config = ctx.config or Config()
        body = json.dumps(event.to_cloudevent(), separators=(",", ":"), allow_nan=False)
        headers = signed_headers(options.signers(), ctx.delivery_id, datetime.now(UTC), body)
        try:
            async with (
                asyncio.timeout(options.timeout),
                http_client(allow_private_networks=config.allow_private_networks, timeout=options.timeout) as client,
                client.stream("POST", str(options.url), content=body.encode(), headers=headers) as response,
            ):
                return _judge(response)
        except TimeoutError as error:
            raise RetryLater(f"no answer within {options.timeout:g} s") from error
        except AddressRefused as error:
            raise TaskFailed(str(error), code="address-refused") from error
        except httpx2.InvalidURL as error:
            raise TaskFailed(str(error), code="invalid-url") from error
        except httpx2.TransportError as error:
            raise RetryLater(f"{options.url.host}: {error or type(error).__name__}") from error


def signed_headers(secrets: Sequence[str], message_id: str, now: datetime, body: str) -> dict[str, str]:
    """The headers of the Standard Webhooks specification, and the media type of CloudEvents' structured mode.

    Of several signatures a receiver needs one that it can verify.
    """
    return {
        "content-type": "application/cloudevents+json; charset=utf-8",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(Signer(secret).sign(message_id, now, body) for secret in secrets),
    }


def _judge(response: httpx2.Response) -> str:
    """What an answer means. Its status and its reason are all that is told of it: the body is not even read."""
    reason = "".join(character for character in response.reason_phrase[:100] if character.isprintable())
    told = f"HTTP {response.status_code} {reason}".rstrip()
    if response.is_success:
        return told
    if response.status_code == 410:
        raise TaskFailed(f"{told}: the receiver wants no more of this", code="gone")
    if response.is_redirect:
        raise RetryLater(f"{told}: a redirect, which is not followed; give the address that answers")
    raise RetryLater(told, delay=retry_after(response.headers) if response.status_code in (429, 503) else None)


@hookimpl
def taskyard_config() -> type[BaseModel]:
    return Config


@hookimpl
def taskyard_notifiers() -> Sequence[Any]:
    return [Webhook]
