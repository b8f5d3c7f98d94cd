"""The notifier ``email``: sends each event as a mail, over SMTP."""

from __future__ import annotations

import functools
import hashlib
import re
import ssl
from collections.abc import Sequence
from contextlib import suppress
from email.message import EmailMessage
from email.policy import SMTP as MAIL
from email.utils import format_datetime, localtime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import aiosmtplib
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FilePath, SecretStr, ValidationInfo, model_validator

from taskyard import DeliveryContext, Event, HtmlTemplate, LineTemplate, RetryLater, TaskFailed, TextTemplate, hookimpl

PORTS = {"starttls": 587, "tls": 465, "plain": 25}

SUBJECT = LineTemplate(f"[taskyard] {LineTemplate.EVENT}")
TEXT = TextTemplate(f"{LineTemplate.EVENT}\n\n\n{TextTemplate.EVENT}")
HTML = HtmlTemplate(f"""\
<!doctype html>
<html><body style="font-family: sans-serif">
<h2>{LineTemplate.EVENT}</h2>
{{% if data.counts %}}
<table cellpadding="4">
{{% for item in data.counts %}}
<tr><td align="right">{{{{ item.count }}}}</td><td>{{{{ item.event }}}}</td><td>{{{{ item.type }}}}</td></tr>
{{% endfor %}}
</table>
<table cellpadding="4">
{{% for told in data.events %}}
<tr><td>{{{{ told.time }}}}</td><td>{{{{ told.type }}}}</td><td>{{{{ told.data.task.type }}}}</td><td>{{{{ told.subject }}}}</td>
<td>{{{{ told.data.error.code }}}} {{{{ told.data.error.message }}}}</td></tr>
{{% endfor %}}
</table>
{{% else %}}
<table cellpadding="4">
{{% for name, value in data|flat %}}
<tr><th align="left" valign="top">{{{{ name }}}}</th><td style="white-space: pre-wrap">{{{{ value }}}}</td></tr>
{{% endfor %}}
</table>
{{% endif %}}
<p style="color: #666">
{{% if task.type %}}
task {{{{ event.task_id }}}}, attempt {{{{ event.attempt }}}}, queue {{{{ task.queue }}}},
{{% endif %}}
{{% if task.tags %}}
tags {{{{ task.tags|join(", ") }}}},
{{% endif %}}
namespace {{{{ task.namespace }}}}, {{{{ event.time }}}}, route {{{{ route }}}}</p>
</body></html>
""")


#: Characters of an address with a name before it. An address alone has 254 at most (RFC 5321, 4.5.3.1.3).
MAX_ADDRESS = 320
#: What an address may have several of, and how many: the parser reads the rest again behind each.
_MOST = {**dict.fromkeys('"<([,:;@', 4), "=?": 8, " ": 20, ".": 40}
MAX_ADDRESSES = 50


def _check_address(text: str) -> str:
    """One address, perhaps with a name before it (RFC 5322, 3.4)."""
    # Before it is parsed: the parser's time grows with the square of what it reads.
    if len(text) > MAX_ADDRESS:
        raise ValueError(f"expected an address of at most {MAX_ADDRESS} characters")
    try:
        header = MAIL.header_factory("To", text) if text.isprintable() and _is_plain(text) else None
    except Exception:  # the parser raises IndexError, among others, at "a@"
        header = None
    if header is None or header.defects or len(header.addresses) != 1 or not header.addresses[0].domain:
        raise ValueError("expected an address such as team@example.com or Team <team@example.com>")
    return text


def _is_plain(text: str) -> bool:
    """Has it no more brackets, quotes, words and dots than an address has?"""
    return all(text.count(sign) <= most for sign, most in _MOST.items())


Address = Annotated[str, AfterValidator(_check_address)]


def _one_or_many(value: Any) -> Any:
    """Counted before they are parsed. Not by ``min_length``: that would tell of each wrong address that it is missing, too."""
    addresses = (value,) if isinstance(value, str) else value
    if isinstance(addresses, list | tuple) and not 1 <= len(addresses) <= MAX_ADDRESSES:
        raise ValueError(f"expected 1 to {MAX_ADDRESSES} addresses")
    return addresses


Addresses = Annotated[tuple[Address, ...], BeforeValidator(_one_or_many)]


class Config(BaseModel):
    """The section ``[plugins.email]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str | None = Field(None, pattern=r"^[^\s/@]+$", description="The mail server.")
    port: int | None = Field(None, ge=1, le=65535, description="Its port. Unset: 587 for starttls, 465 for tls, 25 for plain.")
    security: Literal["starttls", "tls", "plain"] = Field(
        "starttls", description="`starttls` refuses a server that does not offer it, `tls` speaks TLS from the start, `plain` encrypts nothing."
    )
    ca_file: FilePath | None = Field(None, description="Certificates (PEM) that may sign the server's, instead of the system's.")
    username: str | None = Field(None, description="Name for the login. Unset: no login.")
    password: SecretStr | None = Field(None, description="Password for the login.")
    sender: Address | None = Field(None, description="Address that mails come from, such as Taskyard <taskyard@example.com>.")
    timeout: float = Field(20.0, gt=0, le=300, description="Seconds that each step with the server may take.")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("a login needs both username and password")
        if self.password is not None and self.security == "plain" and self.host not in ("localhost", "127.0.0.1", "::1"):
            raise ValueError("a password must not travel unencrypted: set security to starttls or tls")
        if (self.host is None) != (self.sender is None):
            raise ValueError("host and sender belong together")
        return self


class EmailOptions(BaseModel):
    """A route's options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: Addresses = Field(description="Who gets the mail.")
    cc: Addresses = Field((), description="Who gets a copy.")
    reply_to: Address | None = Field(None, description="Where answers go. Unset: to the sender.")
    subject: LineTemplate = Field(SUBJECT, description="Template of the subject.")
    text: TextTemplate | None = Field(None, description="Template of the plain text. Unset: one that suits every event.")
    html: HtmlTemplate | None = Field(None, description="Template of the HTML. Unset: none beside a text of your own, else one that suits every event.")

    @model_validator(mode="after")
    def _check_server(self, info: ValidationInfo) -> Self:
        config = (info.context or {}).get("config")
        if isinstance(config, Config) and config.host is None:
            raise ValueError("there is no mail server to send with: set host and sender in [plugins.email]")
        return self


class Email:
    """Send each event as a mail, over SMTP."""

    name: ClassVar[str] = "email"
    Options: ClassVar[type[BaseModel]] = EmailOptions

    async def send(self, event: Event, options: EmailOptions, ctx: DeliveryContext) -> str:
        """One try: a temporary refusal (4xx), or no answer, means another one; a lasting refusal (5xx) means that more would not help."""
        config: Config = ctx.config or Config()
        if config.host is None or config.sender is None:
            raise TaskFailed("there is no mail server to send with: set host and sender in [plugins.email]", code="no-server")
        message = compose(event, options, config.sender, ctx)
        try:
            return await _transmit(message, config)
        except aiosmtplib.SMTPException as error:
            raise _judge(error, config.host) from error
        except OSError as error:  # certificates too: what the operator mends in a day was not in vain
            raise RetryLater(f"{config.host}: {error or type(error).__name__}") from error


def compose(event: Event, options: EmailOptions, sender: str, ctx: DeliveryContext) -> EmailMessage:
    """The mail of an event. Its id is the same in every try, so that mailboxes show one that arrives twice once."""
    message = EmailMessage(policy=MAIL)
    message["From"] = sender
    message["To"] = ", ".join(options.to)
    if options.cc:
        message["Cc"] = ", ".join(options.cc)
    if options.reply_to:
        message["Reply-To"] = options.reply_to
    message["Subject"] = options.subject.render(event, ctx)
    message["Date"] = format_datetime(localtime())
    domain = MAIL.header_factory("From", sender).addresses[0].domain
    message["Message-ID"] = f"<{_message_id(event, ctx)}@{domain}>"
    if event.task.type:
        # Mail programs show what is about one task together.
        message["References"] = f"<task.{event.task_id}@{domain}>"
    # RFC 3834: nobody's holiday notice answers.
    message["Auto-Submitted"] = "auto-generated"
    text = (options.text or TEXT).render(event, ctx)
    html = options.html or (HTML if options.text is None else None)
    message.set_content(text)
    if html is not None:
        message.add_alternative(html.render(event, ctx), subtype="html")
    return message


def _message_id(event: Event, ctx: DeliveryContext) -> str:
    """Unique among installations that send from one domain: their deliveries have the same numbers."""
    unique = hashlib.sha256(f"{ctx.delivery_id} {ctx.route} {event.id} {event.task_id}".encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', ctx.delivery_id)}.{unique[:24]}"


@functools.cache
def _tls(ca_file: Path | None) -> ssl.SSLContext:
    """What the server's certificate is checked against. Reading the system's took 50 ms, in which no other notification moves."""
    return ssl.create_default_context(cafile=ca_file)


async def _transmit(message: EmailMessage, config: Config) -> str:
    client = aiosmtplib.SMTP(
        hostname=config.host,
        port=config.port or PORTS[config.security],
        timeout=config.timeout,
        use_tls=config.security == "tls",
        start_tls=config.security == "starttls",
        tls_context=None if config.security == "plain" else _tls(config.ca_file),
        username=config.username,
        password=config.password.get_secret_value() if config.password else None,
    )
    try:
        await client.connect()
        refused, said = await client.send_message(message)
        # It is sent, whatever the server makes of our leave.
        with suppress(aiosmtplib.SMTPException, OSError):
            await client.quit(timeout=1)
    finally:
        client.close()
    some = "".join(f"; refused for {address}: {answer.code} {answer.message[:200]}" for address, answer in refused.items())
    return f"taken by {config.host}: {said[:200]}{some}"


def _judge(error: aiosmtplib.SMTPException, host: str) -> RetryLater | TaskFailed:
    """What a failure means for the delivery (RFC 5321, 4.2.1)."""
    told: Sequence[aiosmtplib.SMTPResponseException]
    match error:
        case aiosmtplib.SMTPRecipientsRefused():
            told = error.recipients
        case aiosmtplib.SMTPResponseException():
            told = [error]
        case _:
            return RetryLater(f"{host}: {error.message or type(error).__name__}")
    said = "; ".join(f"{answer.code} {answer.message[:200]}" for answer in told[:5])
    if not all(answer.code >= 500 for answer in told):
        return RetryLater(f"{host}: {said}")
    login = isinstance(error, aiosmtplib.SMTPAuthenticationError)
    return TaskFailed(f"{host} refuses the {'login' if login else 'mail'}: {said}", code="login-refused" if login else "refused")


@hookimpl
def taskyard_config() -> type[BaseModel]:
    return Config


@hookimpl
def taskyard_notifiers() -> Sequence[Any]:
    return [Email]
