"""The plugin ``email``: mails arrive at a real SMTP server, and its answers mean what they say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from email.policy import SMTP as MAIL
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

import taskyard_email
from taskyard import TaskInfo
from taskyard.testing import NotifierRun, assert_plugin_conforms, make_event, run_notifier
from taskyard_email import Config, Email, EmailOptions

from .mail import LOGIN, MailServer, mail_server, silent_server

# aiosmtplib can't be asked to wait until TLS has taken leave: with the test's event loop the connection ends in the middle of that.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")

TASK = TaskInfo("acme", "report.make", "slow", 7, ("vip", "nightly"), "failed")
SENDER = "Taskyard <taskyard@example.com>"


@pytest.fixture
def starttls(tmp_path: Path) -> Iterator[MailServer]:
    with mail_server(tmp_path, "starttls") as server:
        yield server


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[MailServer]:
    with mail_server(tmp_path, "plain", login=False) as server:
        yield server


def config_for(server: MailServer, security: str, **more: Any) -> Config:
    login = {} if security == "plain" else {"username": LOGIN[0], "password": LOGIN[1], "ca_file": server.ca_file}
    return Config.model_validate({"host": "localhost", "port": server.port, "security": security, "sender": SENDER, "timeout": 20, **login, **more})


def send(config: Config, data: dict[str, Any] | None = None, delivery_id: str = "dlv_7", **options: Any) -> NotifierRun:
    event = make_event("task.failed", data=data if data is not None else {"error": {"code": "timeout", "message": "Höhe <b>1</b>"}}, task=TASK)
    return run_notifier(Email, {"to": "team@example.com", **options}, event, config=config, delivery_id=delivery_id)


def test_a_mail_arrives_over_starttls_with_login(starttls: MailServer) -> None:
    run = send(config_for(starttls, "starttls"), to=["Team <team@example.com>", "boss@example.com"], cc="all@example.com", reply_to="help@example.com")
    assert (run.status, run.detail) == ("delivered", "taken by localhost: OK: queued as 1")
    assert (starttls.encrypted, starttls.logins) == ([True], [LOGIN[0]])
    (envelope,), (mail,) = starttls.envelopes, starttls.mails()
    assert envelope.mail_from == "taskyard@example.com"
    assert envelope.rcpt_tos == ["team@example.com", "boss@example.com", "all@example.com"]
    assert (mail["From"], mail["To"], mail["Cc"]) == (SENDER, "Team <team@example.com>, boss@example.com", "all@example.com")
    assert (mail["Subject"], mail["Reply-To"], mail["Auto-Submitted"]) == ("[taskyard] task.failed: report.make", "help@example.com", "auto-generated")


def test_a_mail_has_text_and_html_and_what_a_user_typed_is_escaped(starttls: MailServer) -> None:
    send(config_for(starttls, "starttls"))
    (mail,) = starttls.mails()
    text, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert text is not None
    assert html is not None
    assert "error.message: Höhe <b>1</b>\n" in text.get_content().replace("\r\n", "\n")
    assert "tags vip, nightly" in text.get_content()
    assert "Höhe &lt;b&gt;1&lt;/b&gt;" in html.get_content()
    assert "<b>" not in html.get_content()


def test_a_digest_of_many_events_is_one_mail_with_its_counts(plain: MailServer) -> None:
    told = make_event("task.failed", data={"error": {"code": "timeout", "message": "<b>slow"}}, task=TASK).to_cloudevent()
    counts = [{"event": "task.failed", "type": "report.make", "count": 9990}, {"event": "task.expired", "type": "page.fetch", "count": 10}]
    data = {"route": "night", "count": 10000, "counts": counts, "others": 0, "events": [told]}
    digest = make_event("digest", task_id=UUID(int=0), attempt=0, data=data, task=TaskInfo("default", "", "", 0))
    assert run_notifier(Email, {"to": "team@example.com"}, digest, config=config_for(plain, "plain")).status == "delivered"
    (mail,) = plain.mails()
    text, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert (mail["Subject"], mail["References"]) == ("[taskyard] digest: 10000 events", None)
    assert text is not None
    assert html is not None
    assert text.get_content().splitlines()[2:5] == [
        "9990 x task.failed report.make",
        "10 x task.expired page.fetch",
        f"{told['time']} task.failed report.make {told['subject']} timeout <b>slow",
    ]
    assert "timeout &lt;b&gt;slow</td>" in html.get_content()


def test_a_mail_arrives_over_tls(tmp_path: Path) -> None:
    with mail_server(tmp_path, "tls") as server:
        assert send(config_for(server, "tls")).status == "delivered"
        assert server.encrypted == [True]


def test_a_mail_is_sent_unencrypted_where_the_operator_says_so(plain: MailServer) -> None:
    assert send(config_for(plain, "plain")).status == "delivered"
    assert plain.encrypted == [False]


def test_a_server_without_starttls_gets_nothing(plain: MailServer) -> None:
    run = send(config_for(plain, "starttls", ca_file=None))
    assert run.status == "retry"
    assert "STARTTLS" in run.detail
    assert plain.envelopes == []


def test_a_certificate_that_nobody_trusts_gets_nothing(starttls: MailServer) -> None:
    run = send(config_for(starttls, "starttls", ca_file=None))
    assert run.status == "retry"
    assert "certificate" in run.detail.lower()
    assert starttls.envelopes == []


def test_a_refused_login_is_dead_and_its_password_is_not_told(starttls: MailServer) -> None:
    run = send(config_for(starttls, "starttls", password="wrong-horse"))
    assert run.status == "dead"
    assert run.detail.startswith("localhost refuses the login: 535 ")
    assert "wrong-horse" not in run.detail


@pytest.mark.parametrize(
    ("answers", "status", "cause"),
    [
        ({"DATA": "451 try later"}, "retry", "localhost: 451 try later"),
        ({"DATA": "554 no spam"}, "dead", "localhost refuses the mail: 554 no spam"),
        ({"MAIL": "550 who are you"}, "dead", "localhost refuses the mail: 550 who are you"),
        ({"RCPT team@example.com": "450 busy"}, "retry", "localhost: 450 busy"),
        ({"RCPT team@example.com": "550 unknown"}, "dead", "localhost refuses the mail: 550 unknown"),
    ],
    ids=["later", "content", "sender", "busy recipient", "unknown recipient"],
)
def test_a_temporary_answer_means_another_try_and_a_lasting_one_none(plain: MailServer, answers: dict[str, str], status: str, cause: str) -> None:
    plain.answers |= answers
    run = send(config_for(plain, "plain"))
    assert (run.status, run.detail) == (status, cause)


def test_a_recipient_that_is_refused_beside_others_is_named(plain: MailServer) -> None:
    plain.answers["RCPT gone@example.com"] = "550 unknown"
    run = send(config_for(plain, "plain"), to=["team@example.com", "gone@example.com"])
    assert (run.status, run.detail) == ("delivered", "taken by localhost: OK: queued as 1; refused for gone@example.com: 550 unknown")


def test_a_server_that_is_silent_or_away_means_another_try() -> None:
    with silent_server() as port:
        silent = send(Config(host="127.0.0.1", port=port, security="plain", sender=SENDER, timeout=0.2))
    away = send(Config(host="127.0.0.1", port=1, security="plain", sender=SENDER))
    assert (silent.status, away.status) == ("retry", "retry")
    assert "timed out" in silent.detail.lower()


def test_every_try_has_one_message_id_and_every_delivery_its_own(plain: MailServer) -> None:
    event = make_event("task.failed", task=TASK)
    for delivery in ("dlv_1", "dlv_1", "dlv_2"):
        run_notifier(Email, {"to": "a@example.com"}, event, config=config_for(plain, "plain"), delivery_id=delivery)
    first, again, other = (str(mail["Message-ID"]) for mail in plain.mails())
    assert first == again != other
    assert first.startswith("<dlv_1.")
    assert len({str(mail["References"]) for mail in plain.mails()}) == 1


@pytest.mark.parametrize("attack", ["x\r\nBcc: victim@example.com", "x\nBcc: victim@example.com", "x\rBcc: victim@example.com", "x\u2028Bcc: v@example.com"])
def test_what_a_user_typed_can_not_begin_a_header(plain: MailServer, attack: str) -> None:
    run = send(config_for(plain, "plain"), {"name": attack}, subject="Report {{ data.name }}")
    (mail,), (envelope,) = plain.mails(), plain.envelopes
    assert run.status == "delivered"
    assert (mail["Bcc"], envelope.rcpt_tos) == (None, ["team@example.com"])
    assert str(mail["Subject"]).startswith("Report x Bcc: v")


@pytest.mark.parametrize("address", ["", "team", "@example.com", "a@b.c, d@e.f", "a@b.c\r\nBcc: d@e.f", "a@b.c\nx", "a@", "a b@c.d"])
def test_an_address_that_is_none_is_refused_when_configured(address: str) -> None:
    for field in ("to", "cc", "reply_to"):
        with pytest.raises(ValidationError, match="expected an address"):
            EmailOptions.model_validate({"to": "a@example.com", field: address})
    with pytest.raises(ValidationError, match="expected an address"):
        Config(host="h", sender=address)


def test_a_text_of_ones_own_has_no_html_beside_it(plain: MailServer) -> None:
    send(config_for(plain, "plain"), text="{{ data.error.code }} in {{ task.queue }}")
    (mail,) = plain.mails()
    assert mail.get_content_type() == "text/plain"
    assert mail.get_content().strip() == "timeout in slow"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"username": "a"}, "a login needs both"),
        ({"security": "plain", "username": "a", "password": "b"}, "must not travel unencrypted"),
        ({"sender": None}, "host and sender belong together"),
        ({"host": "h\nx"}, "host"),
        ({"ca_file": "nowhere.pem"}, "does not point to a file"),
    ],
)
def test_a_configuration_that_can_not_work_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Config.model_validate({"host": "mail.example.com", "sender": SENDER, **options})


def test_a_route_without_a_mail_server_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"set host and sender in \[plugins.email\]"):
        run_notifier(Email, {"to": "a@example.com"}, config=Config())


def test_a_broken_template_is_refused_with_its_line() -> None:
    with pytest.raises(ValidationError, match=r"line 2: there is no 'tsk' here\. Did you mean 'task'"):
        EmailOptions.model_validate({"to": "a@example.com", "html": "<p>\n{{ tsk.type }}"})


def test_the_plugin_conforms() -> None:
    assert_plugin_conforms("email")


class CountingParser:
    """The parser of headers; notes how long each text is that it is given."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def header_factory(self, name: str, value: str) -> Any:
        self.lengths.append(len(value))
        return MAIL.header_factory(name, value)


@pytest.mark.parametrize("unit", ["a", "a ", "(", '"', "a@b.c,", "a.", "@", "=?utf-8?q?a?= ", "<", "a:", "[", "()", "@a,", "\\", "=", "é"])
def test_long_addresses_are_refused_before_they_are_parsed(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = CountingParser()
    monkeypatch.setattr(taskyard_email, "MAIL", parser)
    for length in (300, 1_000, 100_000):
        for text in (unit * (length // len(unit)) + "<a@b.c>", unit * (length // len(unit)) + "@b.c"):
            with suppress(ValidationError):
                EmailOptions.model_validate({"to": text})
    assert max(parser.lengths, default=0) <= taskyard_email.MAX_ADDRESS


def test_addresses_are_counted_before_they_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = CountingParser()
    monkeypatch.setattr(taskyard_email, "MAIL", parser)
    with pytest.raises(ValidationError, match="expected 1 to 50 addresses") as caught:
        EmailOptions.model_validate({"to": ["a@b.c"] * 100_000, "cc": []})
    assert parser.lengths == []
    assert caught.value.error_count() == 2


@pytest.mark.parametrize(
    "address",
    ["a@b.c", "Team <team@example.com>", '"Team, A" <t@e.com>', "Ünï Çödé <a@b.de>", '"a b"@c.de', "a@[127.0.0.1]", "a" * 60 + "@" + "b." * 30 + "com"],
)
def test_usual_addresses_are_taken(address: str) -> None:
    assert EmailOptions.model_validate({"to": address}).to == (address,)
