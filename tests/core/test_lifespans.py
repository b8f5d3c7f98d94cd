"""What a plugin's lifespans provide, and which handlers get it: read and checked when the plugin is loaded."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from types import ModuleType
from typing import Annotated, Any

import importlib_metadata
import pytest

from taskyard import Context, Handler, InvalidHandler, LifespanFailed, handler, hookimpl
from taskyard.plugins import GROUP, Plugin, load_plugins
from taskyard.testing import run_batch, run_handler


class Pool:
    """A resource."""

    def __init__(self, name: str = "") -> None:
        self.name = name


class Model:
    """Another one."""


Second = Annotated[Pool, "second"]
seen: list[str] = []


async def pool(config: Any) -> AsyncIterator[Pool]:
    seen.append("begin")
    yield Pool(str(config))
    seen.append("end")


def model() -> Iterator[Model]:
    yield Model()


def load(handlers: list[Handler[Any, Any]], lifespan: Callable[..., Any] | None, monkeypatch: pytest.MonkeyPatch) -> Plugin:
    """The one plugin that has these."""
    module: Any = ModuleType("lifespan_test_plugin")
    module.taskyard_handlers = hookimpl(lambda: handlers)
    if lifespan is not None:
        module.taskyard_lifespan = hookimpl(lifespan)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (plugin,) = load_plugins(entry_points=[importlib_metadata.EntryPoint("one", module.__name__, GROUP)]).plugins
    return plugin


@handler("l.async")
async def in_loop(payload: str, ctx: Context, pool: Pool) -> str:
    """Use a pool."""
    return f"{payload} {pool.name} {ctx.attempt}"


@handler("l.named")
async def by_name(payload: str, *, pool: Pool) -> str:
    """Use a pool, and no context."""
    return pool.name


@handler("l.sync")
def in_process(payload: str, model: Model) -> bool:
    """Use a model."""
    return isinstance(model, Model)


@handler("l.batch", batch=10)
async def together(payloads: list[str], ctxs: list[Context], pool: Pool) -> list[str]:
    """Use a pool for many."""
    return [f"{payload} {pool.name}" for payload in payloads]


@handler("l.second")
async def second(payload: str, pool: Pool, other: Second) -> list[str]:
    """Use two of one type."""
    return [pool.name, other.name]


def both(config: Any) -> list[Any]:
    return [pool, model]


async def several() -> AsyncIterator[tuple[Pool, Second]]:
    yield Pool("a"), Pool("b")


@asynccontextmanager
async def decorated() -> AsyncIterator[Pool]:
    yield Pool()


@contextmanager
def decorated_sync() -> Iterator[Model]:
    yield Model()


def returned() -> AbstractContextManager[Model]:
    return nullcontext(Model())


async def unsaid() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("handlers", "lifespan"),
    [
        ([in_loop, by_name, together], pool),
        ([in_loop, in_process], both),
        ([second], several),
        ([in_loop], decorated),
        ([in_process], decorated_sync),
        ([in_process], returned),
        ([], unsaid),
        ([], None),
    ],
)
def test_a_plugin_whose_resources_are_provided_is_enabled(monkeypatch: pytest.MonkeyPatch, handlers: list[Any], lifespan: Any) -> None:
    plugin = load(handlers, lifespan, monkeypatch)
    assert (plugin.state, plugin.reason) == ("enabled", None)


async def unannotated():  # type: ignore[no-untyped-def]  # that is the test
    yield Pool()


async def anything() -> AsyncIterator[Any]:
    yield Pool()


async def of_two(config: Any, pool: Pool) -> AsyncIterator[Pool]:
    yield pool


@handler("l.text")
def wants_text(payload: str, ctx: str) -> None:
    """Forget that the context is annotated otherwise."""


@handler("l.sync-pool")
def sync_pool(payload: str, pool: Pool) -> None:
    """Want what needs an event loop."""


@pytest.mark.parametrize(
    ("handlers", "lifespan", "reason"),
    [
        ([in_loop], None, "handler 'l.async': its parameter 'pool' asks for the resource test_lifespans.Pool, which nobody provides"),
        ([in_process], pool, "taskyard_lifespan provides test_lifespans.Pool"),
        ([wants_text], None, "asks for the resource builtins.str, which nobody provides; the plugin has no taskyard_lifespan that provides any"),
        ([sync_pool], pool, "but pool is an async lifespan, and the handler is no `async def`"),
        ([], lambda: [pool, decorated], "the resource test_lifespans.Pool: both pool and decorated provide it"),
        ([], unannotated, "the lifespan unannotated: annotate what it yields"),
        ([], anything, "the lifespan anything: handlers ask for resources by type"),
        ([], lambda: [of_two], "the lifespan of_two: expected no parameter, or config, not config, pool"),
        ([], lambda: pool, "expected a list of context managers' functions"),
    ],
)
def test_what_could_not_work_is_told_when_the_plugin_is_loaded(monkeypatch: pytest.MonkeyPatch, handlers: list[Any], lifespan: Any, reason: str) -> None:
    plugin = load(handlers, lifespan, monkeypatch)
    assert plugin.state == "failed"
    assert reason in str(plugin.reason).replace(f"{__name__}.", "test_lifespans.")


def test_a_resource_without_an_annotation_and_a_context_in_a_wrong_place_are_refused() -> None:
    with pytest.raises(InvalidHandler, match="annotate 'pool' with the type of the resource"):

        @handler("l.bare")
        def bare(payload: str, ctx: Context, pool) -> None: ...  # type: ignore[no-untyped-def]  # that is the test

    with pytest.raises(InvalidHandler, match="the context is the second parameter; move 'ctx' there"):

        @handler("l.late")
        def late(payload: str, pool: Pool, ctx: Context) -> None: ...


# --- the testing kit, whose handlers find the hook of this module ---------------------------------------------------------

taskyard_lifespan = hookimpl(both)


def test_a_handlers_lifespan_begins_and_ends_with_its_run() -> None:
    seen.clear()
    run = run_handler(in_loop, "x", config="c")
    assert (run.status, run.result) == ("succeeded", "x c 1")
    assert seen == ["begin", "end"]
    assert run_handler(by_name, "x", config="d").result == "d"
    assert run_handler(in_process, "x").result is True


def test_a_batch_handler_has_resources_too() -> None:
    assert [run.result for run in run_batch(together, ["x", "y"], config="c")] == ["x c", "y c"]


def test_a_fake_stands_in_for_a_resource_and_its_lifespan_is_not_started() -> None:
    seen.clear()
    assert run_handler(in_loop, "x", resources={Pool: Pool("fake")}).result == "x fake 1"
    assert run_handler(second, "x", resources={Pool: Pool("fake"), Second: Pool("too")}).result == ["fake", "too"]
    assert seen == []


def test_a_fake_that_nobody_asks_for_and_a_resource_that_nobody_provides_are_refused() -> None:
    with pytest.raises(TypeError, match=r"l\.async asks for no resource .*Model; it asks for .*Pool"):
        run_handler(in_loop, "x", resources={Model: Model()})
    with pytest.raises(InvalidHandler, match="'other' asks for the resource"):
        run_handler(second, "x", resources={Pool: Pool()})


def test_a_lifespan_that_does_not_start_is_no_failure_of_the_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> AsyncIterator[Pool]:
        if seen != ["off"]:
            raise ConnectionError("postgresql://u:secret@db.example.com/x refuses")
        yield Pool()

    monkeypatch.setattr(sys.modules[__name__], "taskyard_lifespan", hookimpl(broken))
    with pytest.raises(LifespanFailed, match="did not start: ConnectionError: postgresql://u:") as caught:
        run_handler(in_loop, "x")
    assert "secret" not in str(caught.value)
