"""Log lines: one format for all loggers, no secrets, no forged lines."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import structlog
from pydantic import AnyUrl, BaseModel, HttpUrl, PostgresDsn, RedisDsn, Secret, SecretBytes, SecretStr

from taskyard import logs
from taskyard.masking import Hidden, mask, mask_url, secrets_in
from taskyard.settings import BrokerSettings, DatabaseSettings, LogSettings, PluginSettings, Route, Settings


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging as it was before the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    true_streams = (sys.__stdout__, sys.__stderr__)
    hooks, streams = (sys.excepthook, threading.excepthook, sys.unraisablehook), (sys.stdout, sys.stderr)
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    sys.stdout, sys.stderr = streams
    for name, stream in zip(("__stdout__", "__stderr__"), true_streams, strict=True):
        setattr(sys, name, stream)
    logs._hidden = Hidden()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_structlog_and_the_standard_library_write_the_same_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(format="json"))
    structlog.contextvars.bind_contextvars(task_id="t1")
    structlog.get_logger("mine").info("task.claimed", fence=2)
    for name in ("uvicorn.error", "celery", "sqlalchemy.engine", "alembic.runtime"):
        logging.getLogger(name).warning("from %s", name)
    first, *rest = lines(capsys)
    assert first.items() >= {"event": "task.claimed", "fence": 2, "task_id": "t1", "level": "info", "logger": "mine"}.items()
    assert [line["event"] for line in rest] == ["from uvicorn.error", "from celery", "from sqlalchemy.engine", "from alembic.runtime"]
    assert all(line.keys() >= {"timestamp", "level", "logger", "task_id"} for line in rest)


def test_the_level_holds_for_every_logger(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(format="json", level="warning"))
    structlog.get_logger("mine").info("quiet")
    logging.getLogger("celery").info("quiet")
    structlog.get_logger("mine").warning("heard")
    assert [line["event"] for line in lines(capsys)] == ["heard"]


@pytest.mark.parametrize("format", ["console", "json"])
def test_a_value_can_not_forge_a_line_or_drive_the_terminal(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(format="json" if format == "json" else "console"))
    evil = "x\n2026-01-01T00:00:00Z [info] forged\x1b[31m\x9b\u2028\r"
    structlog.get_logger("mine").info(evil, **{"key\n": evil, "deep": {"k": [evil]}})
    logging.getLogger("stdlib").info("%s", evil)
    written = capsys.readouterr().err
    assert len(written.splitlines()) == 2
    assert "\x1b" not in written
    assert "\x9b" not in written


def test_a_trace_keeps_its_lines_and_can_not_pass_for_others(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(format="console"))
    try:
        raise ValueError("bad\n2026-01-01 forged\x1b[31m postgresql://u:hunter2@h")
    except ValueError:
        structlog.get_logger("mine").exception("task.failed")
        logging.getLogger("stdlib").exception("failed")
    written = capsys.readouterr().err
    assert sum(not line.startswith("    ") for line in written.splitlines()) == 2
    assert written.count("ValueError: bad") == 2
    assert "\x1b" not in written
    assert "hunter2" not in written


def test_secrets_are_masked_by_their_key_and_in_urls(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(format="json"))
    structlog.get_logger("mine").info(
        "connect amqp://guest:hunter2@h//",
        password="hunter2",
        api_key="hunter2",
        headers={"Authorization": "Bearer hunter2", "Accept": "x"},
        urls=["https://u:hunter2@h/p", "https://h/?token=hunter2&a=1"],
        held=SecretStr("hunter2"),
        token_count=3,
    )
    logging.getLogger("celery").info("to %s", "redis://:hunter2@h", extra={"secret": "hunter2"})
    written = capsys.readouterr().err
    assert "hunter2" not in written
    first = json.loads(written.splitlines()[0])
    assert (first["headers"]["Accept"], first["token_count"], first["urls"][1]) == ("x", 3, "https://h/?token=***&a=1")


def test_a_secret_url_is_shown_without_its_password_and_a_malformed_one_not_at_all() -> None:
    assert mask(SecretStr("postgresql://u:hunter2@h/d"), "url") == "postgresql://u:***@h/d"
    assert mask(SecretStr("postgresql://u:hun/ter2@h/d"), "url") == "***"
    assert mask(SecretStr("postgresql://h/d?password=hunter2"), "url") == "postgresql://h/d?password=***"


class Inner(NamedTuple):
    url: str = "https://h/?access_token=hunter2hunter2"


@dataclass
class Held:
    password: str = "hunter2hunter2"
    inner: Inner = field(default_factory=Inner)


class Options(BaseModel):
    """Secrets, as options hold them."""

    web: HttpUrl = HttpUrl("https://u:hunter2hunter2@h/x?sig=hunter2hunter2")
    any: AnyUrl = AnyUrl("ftp://u:hunter2hunter2@h/x#token=hunter2hunter2")
    dsn: PostgresDsn = PostgresDsn("postgresql://u:hunter2hunter2@h,i/x")
    cache: RedisDsn | None = RedisDsn("redis://:hunter2hunter2@h/0")
    bytes_: SecretBytes = SecretBytes(b"hunter2hunter2")
    pair: Secret[tuple[str, str]] = Secret(("hunter2hunter2", "u"))
    headers: dict[str, list[str]] = {"X-Api-Key": ["hunter2hunter2"]}
    login: dict[str, dict[str, str]] = {"credentials": {"of": "hunter2hunter2"}}
    held: Held = Held()
    many: list[Held | HttpUrl] = [Held(), HttpUrl("https://h/?api_key=hunter2hunter2")]
    smtp_pass: str = "hunter2hunter2"
    conninfo: str = "host=h password='hunter2hunter2' dbname=x"
    raw: bytes = b"https://u:hunter2hunter2@h"
    plain: str = "shown"
    limit_tokens: int = 5


def test_secrets_are_masked_by_type_wherever_they_are_held() -> None:
    masked = mask(Options())
    assert "hunter2" not in json.dumps(masked)
    assert (masked["plain"], masked["limit_tokens"]) == ("shown", 5)
    assert (masked["web"], masked["dsn"], masked["cache"]) == ("https://u:***@h/x?sig=***", "postgresql://u:***@h,i/x", "redis://:***@h:6379/0")
    assert masked["held"] == {"password": "***", "inner": {"url": "https://h/?access_token=***"}}
    assert "hunter2" not in json.dumps(mask({"deep": [{"more": (Options(),)}]}))


@pytest.mark.parametrize("name", Options.model_fields)
def test_what_is_masked_by_type_is_known_wherever_it_stands(name: str) -> None:
    hidden = Hidden()
    hidden.add(secrets_in({name: getattr(Options(), name)}))
    expected = "not known" if name in ("plain", "limit_tokens", "conninfo") else "***"
    assert hidden.clean("hunter2hunter2") == expected.replace("not known", "hunter2hunter2")


def test_a_long_text_is_cut_before_it_is_masked_and_the_cut_shows_no_part_of_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(LogSettings(format="json"))
    logs.hide(["a-secret-of-many-letters"])
    for before in range(logs.MAX_TEXT - 30, logs.MAX_TEXT + 1):
        text = "x" * before + "a-secret-of-many-letters" + "y" * 10_000
        structlog.get_logger("mine").info(text, exception=text[::-1].replace("a-secret-of-many-letters"[::-1], "a-secret-of-many-letters"))
    told = lines(capsys)
    assert all(len(line["event"]) <= logs.MAX_TEXT + 1 for line in told)
    assert all(line["event"].endswith("…") and line["exception"].startswith("…") for line in told)
    assert not any("a-" in line["event"] or "letters" in line["event"] or "a-s" in line["exception"] or "ters" in line["exception"] for line in told)


def test_a_chat_services_url_is_a_secret_as_a_whole() -> None:
    url = "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
    assert mask({"url": SecretStr(url)}) == {"url": "***"}
    hidden = Hidden()
    hidden.add(secrets_in({"url": SecretStr(url)}))
    assert hidden.clean(f"POST {url} and https://hooks.slack.com/services/TIiajkdnlazkcOXrIdevi7FQ") == "POST *** and https://hooks.slack.com/services/***"


def test_a_chat_services_web_address_is_one_too_and_its_host_is_not() -> None:
    url = "https://hooks.chat.example/services/T1JJ3T3L2/TIiajkdnlazkcOXrIdevi7FQ"
    assert mask({"url": SecretStr(url), "typed": Secret[HttpUrl](HttpUrl(url))}) == {"url": "***", "typed": "***"}
    hidden = Hidden()
    hidden.add(secrets_in({"url": SecretStr(url)}))
    assert hidden.clean("hooks.chat.example refused TIiajkdnlazkcOXrIdevi7FQ") == "hooks.chat.example refused ***"


def test_a_token_in_the_place_of_a_user_is_masked_in_a_web_address() -> None:
    assert mask_url("clone https://ghp_a1b2c3d4@github.com/x, then postgresql://user@h/x") == "clone https://***@github.com/x, then postgresql://user@h/x"


def test_keys_that_a_text_assigns_are_masked() -> None:
    assert (
        mask_url("AWS_SECRET_ACCESS_KEY=abc, apiKey: 1, 'private-key': 'x y', a_key=1") == "AWS_SECRET_ACCESS_KEY=***, apiKey: 1, 'private-key': ***, a_key=1"
    )


def test_no_colours_are_written_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    assert not sys.stderr.isatty()
    logs.configure(LogSettings(format="console"))
    structlog.get_logger("mine").error("plain")
    assert "\x1b" not in capsys.readouterr().err


SECRETS = {
    "the database's password": "p@ss w0rd/",
    "the broker's password": "brokerpass",
    "a webhook's secret": "whsec_MfKQ9r8GKYqrTwjU",
    "a plugin's option": "a-plugins-api-key",
}


def _settings() -> Settings:
    database, broker, hook, plugin = SECRETS.values()
    return Settings(
        database=DatabaseSettings(url=SecretStr(f"postgresql://owner:{quote(database, safe='')}@db/yard")),
        broker=BrokerSettings(url=SecretStr(f"amqp://someone:{broker}@mq//")),
        plugins=PluginSettings.model_validate({"mail": {"api_key": plugin}}),
        routes=(Route(name="r", notifier="webhook", events=("task.failed",), options={"url": "https://h", "secret": hook}),),
        log=LogSettings(format="json"),
    )


@pytest.mark.parametrize("which", SECRETS)
def test_a_secret_of_the_settings_is_masked_wherever_it_stands(which: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure_role(_settings())
    secret = SECRETS[which]

    class Opaque:
        def __str__(self) -> str:
            return f"<opaque {secret}>"

    try:
        raise ConnectionError(f'login with "{secret}" failed')
    except ConnectionError as error:
        structlog.get_logger("mine").exception("failed", error=error, text=f"x{secret}y", nested=[{"deep": Opaque(), secret: 1}], plain=Opaque())
        logging.getLogger("library").exception("with %s", secret, extra={"more": Opaque()})
    print("printed", secret)
    written = capsys.readouterr().err
    assert len(written.splitlines()) == 3
    assert secret not in written
    assert written.count("***") >= 9


def test_a_password_is_known_as_it_is_and_as_its_url_has_it() -> None:
    found = set(secrets_in(_settings()))
    assert {"p%40ss%20w0rd%2F", "p@ss w0rd/"} <= found
    assert {"brokerpass", "a-plugins-api-key", "whsec_MfKQ9r8GKYqrTwjU"} <= found
    hidden = Hidden()
    hidden.add(["p@ss w0rd/"])
    assert [hidden.clean(f"<{form}>") for form in ("p@ss w0rd/", "p%40ss%20w0rd%2F", "p%40ss+w0rd%2F")] == ["<***>"] * 3


def test_a_short_password_eats_no_other_words() -> None:
    hidden = Hidden()
    hidden.add(["guest", "postgres", "", "longer-than-that"])
    assert hidden.clean("guest postgresql://postgres@h xlonger-than-thaty") == "guest postgresql://***@h x***y"


def test_all_that_a_role_says_is_a_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure_role(Settings(log=LogSettings(format="json")))
    logs.configure_role(Settings(log=LogSettings(format="json")))
    print("one", end="")
    print(" line")
    sys.stderr.write("two\nand three\n")
    thread = threading.Thread(target=lambda: int("nothing"), name="unlucky")
    thread.start()
    thread.join()
    try:
        raise RuntimeError("nobody caught this")
    except RuntimeError as error:
        sys.excepthook(RuntimeError, error, error.__traceback__)
    told = lines(capsys)
    assert [(line["logger"], line["event"]) for line in told[:3]] == [("stdout", "one line"), ("stderr", "two"), ("stderr", "and three")]
    assert [line["event"] for line in told[3:]] == ["thread.failed", "process.failed"]
    assert (told[3]["thread"], told[3]["level"], told[4]["level"]) == ("unlucky", "error", "critical")
    assert "ValueError" in told[3]["exception"]
    assert "nobody caught this" in told[4]["exception"]


def test_a_line_that_never_ends_does_not_fill_the_memory(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure_role(Settings(log=LogSettings(format="json")))
    for _ in range(100):
        sys.stdout.write("x" * 1000)
    assert sum(len(line["event"]) for line in lines(capsys)) > 80_000
