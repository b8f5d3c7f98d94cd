"""The notifier ``apprise``: sends each event to Slack, Telegram, Teams, Discord and some hundred others, by a URL that Apprise knows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from taskyard import DeliveryContext, Event, HtmlTemplate, LineTemplate, MarkdownTemplate, RetryLater, TextTemplate, hookimpl

if TYPE_CHECKING:
    from apprise import NotifyBase

TITLE = LineTemplate(LineTemplate.EVENT)
TEXT = TextTemplate(TextTemplate.EVENT)
#: What Apprise colours and pictures a message by.
KINDS = {
    **dict.fromkeys(("task.failed", "task.expired", "plugin.failed", "delivery.dead"), "failure"),
    **dict.fromkeys(("task.lost", "task.retrying", "worker.lost", "queue.stalled", "digest"), "warning"),
    "task.succeeded": "success",
}
#: Characters of a URL. Apprise reads it by patterns of its own.
MAX_URL = 4_096
#: A part of a URL that is shorter may be any word of a cause.
SHORTEST_SECRET = 6


def _service(url: str) -> NotifyBase | None:
    """What Apprise makes of a URL: a service, or None where it knows none. Nothing is kept on disk, and redirects are off."""
    import apprise  # Here, not above: it takes a while, and whoever has no route to it need not wait.

    asset = apprise.AppriseAsset(
        app_id="Taskyard", app_desc="Taskyard", app_url="", async_mode=False, http_redirects=False, storage_mode=apprise.PersistentStoreMode.MEMORY
    )
    return apprise.Apprise.instantiate(url, asset=asset)


def _check_url(url: SecretStr) -> SecretStr:
    if _service(url.get_secret_value()) is None:
        raise ValueError("Apprise makes nothing of this URL; https://appriseit.com/services/ shows how each service's is written")
    return url


class AppriseOptions(BaseModel):
    """A route's options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[SecretStr, Field(max_length=MAX_URL), AfterValidator(_check_url)] = Field(
        description="Apprise URL of the service, such as slack://... It has the secrets in it."
    )
    title: LineTemplate = Field(TITLE, description="Template of the title.")
    text: TextTemplate | None = Field(None, description="Template of the message, as plain text. Unset: one that suits every event.")
    markdown: MarkdownTemplate | None = Field(None, description="Template of the message, as Markdown, instead of `text`.")
    html: HtmlTemplate | None = Field(None, description="Template of the message, as HTML, instead of `text`.")

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if sum(template is not None for template in (self.text, self.markdown, self.html)) > 1:
            raise ValueError("expected one of text, markdown and html: Apprise turns it into what the service takes")
        return self

    def body(self, event: Event, ctx: DeliveryContext) -> tuple[str, str]:
        """The message, and its format."""
        for template, kind in ((self.markdown, "markdown"), (self.html, "html")):
            if template is not None:
                return template.render(event, ctx), kind
        return (self.text or TEXT).render(event, ctx), "text"


class AppriseNotifier:
    """Send each event to Slack, Telegram, Teams, Discord and others, by an Apprise URL."""

    name: ClassVar[str] = "apprise"
    #: Its URLs lead anywhere: into the operator's network, to files, to programs of the worker's machine.
    operators_only: ClassVar[bool] = True
    Options: ClassVar[type[BaseModel]] = AppriseOptions

    def send(self, event: Event, options: AppriseOptions, ctx: DeliveryContext) -> str:
        """One try, in a thread of its own: Apprise waits for the answer. It does not tell lasting failures from others, so each means another try."""
        import apprise

        url = options.url.get_secret_value()
        service = _service(url)
        if service is None:
            raise RetryLater("Apprise makes nothing of this URL any more")
        said: list[str] = []
        sender = apprise.Apprise()
        sender.add(service)
        body, kind = options.body(event, ctx)
        sent = sender.notify(
            body=body,
            title=options.title.render(event, ctx),
            body_format=kind,
            notify_type=KINDS.get(event.type, "info"),
            timeout=ctx.timeout,
            log_callback=lambda entry, _: said.append(entry.message) if entry.level in ("WARNING", "ERROR", "CRITICAL") else None,
        )
        if not sent:
            raise RetryLater(f"{service.service_name}: {_without_secrets(' '.join(said) or 'not sent', url)}")
        return f"sent by {service.service_name}"


def _without_secrets(cause: str, url: str) -> str:
    """A cause without what the URL is made of, but for its scheme and what it shares with no secret: clients may read it."""
    parts = {part for part in re.split(r"[:/@?&=#]+", url.partition("://")[2]) if len(part) >= SHORTEST_SECRET}
    for part in sorted(parts, key=len, reverse=True):
        cause = cause.replace(part, "***")
    return " ".join(cause.split())[:300]


@hookimpl
def taskyard_notifiers() -> Sequence[Any]:
    return [AppriseNotifier]
