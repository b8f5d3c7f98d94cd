"""What `taskyard up` decides, and how its parts' lines look."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from taskyard.errors import ConfigurationError
from taskyard.settings import ApiSettings, AuthSettings, BrokerSettings, DatabaseSettings, Settings
from taskyard.up.output import Output
from taskyard.up.parts import Role
from taskyard.up.plan import Plan, free_port, make_plan
from taskyard.up.readiness import example
from taskyard.up.supervisor import Supervisor

ELSEWHERE = {"database": DatabaseSettings(url=SecretStr("postgresql://h/d")), "broker": BrokerSettings(url=SecretStr("amqp://h//"))}


def _plan(settings: Settings) -> Plan:
    return make_plan(settings, data_dir=Path(".taskyard"), workers=1)


def _written(*lines: tuple[str, str], json_lines: bool) -> list[str]:
    stream = io.StringIO()
    output = Output(stream, width=6, json_lines=json_lines)
    for name, text in lines:
        output.line(name, text)
    return stream.getvalue().splitlines()


def test_each_part_is_embedded_by_itself() -> None:
    plan = _plan(Settings(database=ELSEWHERE["database"], api=ApiSettings(port=0)))
    assert (plan.embed_postgres, plan.embed_broker) == (False, True)
    assert plan.port > 0
    assert str(plan.port) in plan.roles()["web"]


def test_another_address_than_loopback_is_for_servers_of_ones_own_and_asks_for_keys() -> None:
    api = ApiSettings(host="0.0.0.0", port=0)
    with pytest.raises(ConfigurationError, match="loopback"):
        _plan(Settings(api=api))
    plan = _plan(Settings(api=api, **ELSEWHERE))
    assert plan.asks_for_keys
    assert plan.url == f"http://127.0.0.1:{plan.port}"
    assert not _plan(Settings(api=api, auth=AuthSettings(mode="none"), **ELSEWHERE)).asks_for_keys
    assert not _plan(Settings(api=ApiSettings(port=0), **ELSEWHERE)).asks_for_keys


def test_an_address_of_another_machine_is_told_in_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1 port 80"):
        free_port("192.0.2.1", 80)


class Recorded:
    """A part that only tells when it was stopped."""

    def __init__(self, name: str, stopped: list[str], stops: asyncio.Barrier | None = None) -> None:
        self.name = name
        self.is_used = stops is None
        self._stops = stops
        self._stopped = stopped

    async def start(self) -> None:
        pass

    async def ended(self) -> int:
        await asyncio.Event().wait()
        return 0

    async def stop(self, hurry: asyncio.Event) -> None:
        if self._stops is not None:
            await self._stops.wait()
        self._stopped.append(self.name)


def test_the_roles_stop_together_and_then_the_servers_of_which_the_last_started_is_first() -> None:
    stopped: list[str] = []

    async def all_of_it() -> None:
        supervisor = Supervisor(Output(io.StringIO(), width=8))
        for name in ("postgres", "broker"):
            await supervisor.add(Recorded(name, stopped))
        # Each waits for the others: stopped one by one, the first would never end.
        together = asyncio.Barrier(3)
        for name in ("worker", "dispatcher", "web"):
            await supervisor.add(Recorded(name, stopped, together))
        await supervisor.stop()

    asyncio.run(all_of_it())
    assert set(stopped[:3]) == {"worker", "dispatcher", "web"}
    assert stopped[3:] == ["broker", "postgres"]


def _signalled(monkeypatch: pytest.MonkeyPatch, *numbers: signal.Signals, echo: float) -> tuple[bool, bool]:
    """(is it asked to stop, is it hurried) after these signals, all at once."""
    monkeypatch.setattr("taskyard.up.supervisor._ECHO", echo)

    async def signalled() -> tuple[bool, bool]:
        supervisor = Supervisor(Output(io.StringIO(), width=8))
        supervisor.listen()
        for number in numbers:
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.01)
        return supervisor.stopping, supervisor._hurry.is_set()

    return asyncio.run(signalled())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_comes_twice_at_once_is_one_request(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    assert _signalled(monkeypatch, number, number, echo=60) == (True, False)


@pytest.mark.parametrize(("number", "hurried"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, False)])
def test_later_only_another_ctrl_c_hurries(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, hurried: bool) -> None:
    assert _signalled(monkeypatch, signal.SIGTERM, number, echo=0) == (True, hurried)


def test_somebody_who_hurries_does_not_wait_for_a_part_that_will_not_stop() -> None:
    stubborn = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(600)"]
    stream = io.StringIO()

    async def hurried() -> int:
        role = Role("stubborn", stubborn, os.environ, Output(stream, width=8), grace=600)
        await role.start()
        while "here" not in stream.getvalue():  # noqa: ASYNC110  # another process sets no event of ours
            await asyncio.sleep(0.01)
        hurry = asyncio.Event()
        hurry.set()
        await role.stop(hurry)
        return await role.ended()

    assert asyncio.run(hurried()) == -signal.SIGKILL
    assert "stubborn is killed" in stream.getvalue()


def test_a_part_has_its_name_before_each_line() -> None:
    assert _written(("web", "hello"), ("worker", "there"), json_lines=False) == ["web    | hello", "worker | there"]


def test_for_programs_every_line_is_json_with_the_parts_name() -> None:
    said = ('{"event": "hello"}', "plain\x1b[31m", "{no json", "17")
    first, *others = [json.loads(line) for line in _written(*(("web", text) for text in said), json_lines=True)]
    assert first == {"part": "web", "event": "hello"}
    assert others == [{"part": "web", "event": text} for text in said[1:]]


def test_lines_come_whole_however_they_arrive_and_a_last_one_without_an_end_too() -> None:
    async def copied() -> list[str]:
        stream, source = io.StringIO(), asyncio.StreamReader()
        source.feed_data(b"a lo")
        source.feed_data(b"ng line\n\xff\nlast")
        source.feed_eof()
        await Output(stream, width=3).copy("web", source)
        return stream.getvalue().splitlines()

    assert asyncio.run(copied()) == ["web | a long line", "web | \ufffd", "web | last"]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"properties": {"n": {"default": 1}}}, {}),
        ({"properties": {"text": {"examples": ["hello"]}}, "required": ["text"]}, {"text": "hello"}),
        ({"properties": {"url": {}}, "required": ["url"]}, None),
        ({"properties": {"url": {}}, "required": ["url"], "examples": [{"url": "https://example.com"}]}, {"url": "https://example.com"}),
    ],
)
def test_the_pasted_line_is_of_a_type_that_tells_of_a_payload(schema: dict[str, object], expected: object) -> None:
    assert example(schema) == expected
