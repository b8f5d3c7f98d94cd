"""One broken plugin stops nobody: it is marked as failed with the reason, and the rest goes on."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import importlib_metadata
import pytest
from pydantic import BaseModel

from taskyard import Context, InvalidHandler, handler, hookimpl
from taskyard.errors import ConfigurationError
from taskyard.plugins import GROUP, Registry, check_routes, load_plugins, load_plugins_for
from taskyard.settings import PluginSettings, Route, Settings


class WithCallable(BaseModel):
    call: Callable[[], int] = lambda: 1


class Sender:
    """Send nowhere."""

    name = "sender"

    class Options(BaseModel):
        where: str = ""

    def send(self, event: Any, options: Any, ctx: Any) -> None: ...


class Unschemed(Sender):
    """Send nowhere, with an option that no client could write."""

    Options: Any = WithCallable


@handler("fine.work")
def fine(payload: dict[str, Any]) -> None:
    """Work."""


@handler("bad.payload")
def bad_payload(payload: WithCallable) -> None:
    """Work on what no client could send."""


@handler("bad.result")
def bad_result(payload: dict[str, Any]) -> WithCallable:
    """Return what no client could read."""
    return WithCallable()


def _plugin(handlers: list[Any], notifiers: list[Any]) -> Any:
    return SimpleNamespace(taskyard_handlers=hookimpl(lambda: handlers), taskyard_notifiers=hookimpl(lambda: notifiers))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Registry]:
    """Load plugins, each a module with these handlers and notifiers."""

    def loaded(**plugins: Any) -> Registry:
        entries = []
        for name, plugin in plugins.items():
            module: Any = ModuleType(f"host_test_{name}")
            vars(module).update(vars(plugin))
            monkeypatch.setitem(sys.modules, module.__name__, module)
            entries.append(importlib_metadata.EntryPoint(name, module.__name__, GROUP))
        return load_plugins(entry_points=entries)

    return loaded


def _twin() -> Any:
    @handler("t.twin")
    def twin(payload: dict[str, Any]) -> None:
        """Be there twice."""

    return twin


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (_plugin([bad_payload], []), "handler 'bad.payload': payload: no JSON Schema can be built"),
        (_plugin([bad_result], []), "handler 'bad.result': result: no JSON Schema can be built"),
        (_plugin([], [Unschemed]), "notifier 'sender': Options: no JSON Schema can be built"),
        (_plugin([_twin(), _twin()], []), "brings the task type 't.twin' more than once"),
        (_plugin([], [Sender, Sender]), "brings the notifier 'sender' more than once"),
    ],
)
def test_a_broken_plugin_fails_alone(load: Callable[..., Registry], broken: Any, reason: str) -> None:
    registry = load(broken=broken, fine=_plugin([fine], []))
    assert [(plugin.name, plugin.state) for plugin in registry.plugins] == [("broken", "failed"), ("fine", "enabled")]
    assert reason in str(registry.plugins[0].reason)
    assert list(registry.handlers) == ["fine.work"]
    assert registry.handlers["fine.work"].payload_schema()["type"] == "object"


ROUTE = Route(name="r", notifier="sender", events=("task.failed",), options={"secret": "hidden"})


def test_a_route_to_a_failed_plugins_notifier_waits_and_stops_nobody(load: Callable[..., Registry]) -> None:
    check_routes(load(broken=_plugin([bad_payload], [Sender]), fine=_plugin([fine], [])), [ROUTE])


def test_a_route_to_a_notifier_that_nobody_brings_is_refused(load: Callable[..., Registry]) -> None:
    with pytest.raises(ConfigurationError, match="no plugin brings the notifier 'sender'"):
        check_routes(load(fine=_plugin([fine], [])), [ROUTE])


def test_a_process_starts_with_a_waiting_route() -> None:
    settings = Settings(plugins=PluginSettings.model_validate({"only": ["http"], "http": {"nonsense": 1}}), routes=(ROUTE,))
    assert load_plugins_for(settings).plugins, "http has failed, and may have brought the notifier"


def test_a_generator_is_no_handler() -> None:
    def plain(payload: dict[str, Any]) -> Iterator[int]:
        yield 1

    async def asynchronous(payload: dict[str, Any], ctx: Context) -> AsyncIterator[int]:
        yield 1

    for function in (plain, asynchronous):
        with pytest.raises(InvalidHandler, match="is a generator"):
            handler("t.generator")(function)
