"""`taskyard.client` against the real service, as a program that blocks and as one that awaits: what one does, the other does."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import methodcaller
from typing import Any, ClassVar, Literal
from uuid import UUID, uuid4

import pytest
from pydantic import HttpUrl
from sqlalchemy import Engine, text

import taskyard
from taskyard import client as api
from taskyard import keys, lifecycle, tasklogs
from taskyard.client import AsyncClient, Client, New, Retries
from taskyard.errors import ConfigurationError, InvalidInput
from taskyard.plugins import Registry
from taskyard.records import Finished
from taskyard.routes import sync_routes
from taskyard.settings import AuthSettings, Settings
from taskyard.up.plan import free_port
from taskyard_api import bulk, command
from taskyard_api.app import create_app
from taskyard_api.problems import INTERNAL, KINDS
from taskyard_api.routes import actions
from tests.api.conftest import Fetch, Page, fetch
from tests.proxy import Proxy
from tests.stack import PATIENCE

pytestmark = pytest.mark.one_pair

PAGE = Fetch(url=HttpUrl("https://example.com/"))
QUICK = Retries(first=0.01, longest=0.05)


class serving:
    """A service on a port of its own, in a thread."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self.server = command.server_of(create_app(settings, registry))
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],))

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    def __exit__(self, *error: object) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        self.listening.close()


@pytest.fixture
def url(api_settings: Settings, registry: Registry) -> Iterator[str]:
    with serving(api_settings, registry) as address:
        yield address


class Caller:
    """Calls a client of either kind. What it streams is read to its end."""

    def __init__(self, kind: type[Client | AsyncClient], url: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self.client = kind(url, retries=QUICK, **options)

    def __call__(self, call: Callable[[Any], Any]) -> Any:
        return self.value(call(self.client))

    def value(self, answer: Any) -> Any:
        """What an answer comes to."""
        if inspect.isawaitable(answer):
            return self._loop.run_until_complete(_await(answer))
        if inspect.isasyncgen(answer):
            return self._loop.run_until_complete(_all(answer))
        return list(answer) if inspect.isgenerator(answer) else answer

    def close(self) -> None:
        self.value(self.client.close())
        self._loop.close()


async def _await(answer: Any) -> Any:
    return await answer


async def _all(stream: Any) -> list[Any]:
    return [item async for item in stream]


@pytest.fixture(params=[Client, AsyncClient])
def kind(request: pytest.FixtureRequest) -> type[Client | AsyncClient]:
    made: type[Client | AsyncClient] = request.param
    return made


@pytest.fixture
def call(kind: type[Client | AsyncClient], url: str) -> Iterator[Caller]:
    caller = Caller(kind, url)
    yield caller
    caller.close()


def start(engine: Engine, task_id: UUID) -> int:
    """Be the dispatcher, and the worker that takes a task of type pages.fetch. Answers its fence."""
    worker = uuid4()
    with engine.begin() as connection:
        lifecycle.register_worker(connection, worker, "w", ["io"], {})
        lifecycle.dispatch(connection, "io", "async", 10, 60)
        (row,) = lifecycle.claim(connection, worker, "io", "async", [task_id], ["pages.fetch"], 1)
    return int(row["fence"])


def test_a_tasks_log_is_listed_and_followed(call: Caller, engine: Engine) -> None:
    task = call(lambda client: client.submit(fetch, PAGE))
    lines = [{"time": "2026-01-01T00:00:00Z", "level": level, "message": level, "fields": {"n": 1}} for level in ("info", "warning")]
    rows = json.dumps([{"id": str(task.id), "fence": start(engine, task.id), "dropped": 0, "lines": lines}])
    with engine.begin() as connection:
        assert tasklogs.write(connection, rows) == [task.id]
        connection.execute(text("UPDATE tasks SET cancel_requested_at = now()"))
        lifecycle.finish(connection, [Finished(task.id, 1, "cancelled")], 3)
    assert [(line.level, line.fields["n"], line.fence) for line in call(lambda client: client.logs(task.id))] == [("info", 1, 1), ("warning", 1, 1)]
    assert [line.message for line in call(lambda client: client.logs(task.id, level=["warning", "error"]))] == ["warning"]
    followed = [(event.type, event.data.get("message")) for event in call(lambda client: client.follow(task.id))]
    assert followed[-3:] == [("task.log", "info"), ("task.log", "warning"), ("task.cancelled", None)]


Outcome = Literal["succeeded", "failed", "cancelled"]


def finish(engine: Engine, task_id: UUID, fence: int, outcome: Outcome = "succeeded", **said: Any) -> None:
    """Be that worker at the end."""
    with engine.begin() as connection:
        lifecycle.finish(connection, [Finished(task_id, fence, outcome, **said)], 3)


def tell(engine: Engine, task_id: UUID, count: int) -> None:
    """Write so many events of a task, each in a commit of its own."""
    statement = text("INSERT INTO events (task_id, namespace, type, attempt, data) VALUES (:task, 'default', 'task.updated', 0, jsonb_build_object('n', :n))")
    for n in range(count):
        with engine.begin() as connection:
            connection.execute(statement, {"task": task_id, "n": n})


# --- results and errors ---


def test_a_result_is_what_the_handler_says_it_is(call: Caller, engine: Engine) -> None:
    handle = call(lambda client: client.submit(fetch, PAGE, tags=["a"], priority=9))
    assert (handle.task.type, handle.task.priority, handle.task.tags, handle.replayed) == ("pages.fetch", 9, ("a",), False)
    fence = start(engine, handle.id)
    threading.Timer(0.2, partial(finish, engine, handle.id, fence, result='{"size": 7}')).start()
    assert call.value(handle.result(timeout=60)) == Page(size=7)
    again = call(lambda client: client.handle(handle.id, fetch))
    assert call.value(again.result()) == Page(size=7)
    untyped = call(lambda client: client.handle(str(handle.id)))
    assert call.value(untyped.result()) == {"size": 7}


def test_a_result_that_is_not_what_the_handler_says_is_told(call: Caller, engine: Engine) -> None:
    handle = call(lambda client: client.submit(fetch, PAGE))
    finish(engine, handle.id, start(engine, handle.id), result='{"size": "large"}')
    with pytest.raises(api.UnexpectedAnswer, match=r"pages\.fetch"):
        call.value(handle.result())


def test_a_task_that_failed_raises_its_code_and_message(call: Caller, engine: Engine) -> None:
    handle = call(lambda client: client.submit(fetch, PAGE))
    finish(engine, handle.id, start(engine, handle.id), "failed", error={"code": "no-page", "message": "there is none", "where": "here"})
    with pytest.raises(api.TaskUnsuccessful, match="no-page: there is none") as caught:
        call.value(handle.result())
    assert (caught.value.code, caught.value.message) == ("no-page", "there is none")
    assert caught.value.task.error is not None
    assert caught.value.task.error.model_extra == {"where": "here"}
    assert call.value(handle.wait()).status == "failed"


def test_a_task_that_was_cancelled_has_no_result(call: Caller) -> None:
    handle = call(lambda client: client.submit(fetch, PAGE))
    assert call.value(handle.cancel()).status == "cancelled"
    with pytest.raises(api.TaskUnsuccessful) as caught:
        call.value(handle.result())
    assert caught.value.code == "cancelled"


def test_who_does_not_want_to_wait_for_ever_gets_the_task_as_it_stands(call: Caller) -> None:
    handle = call(lambda client: client.submit(fetch, PAGE))
    with pytest.raises(api.WaitTimeout, match="it is pending") as caught:
        call.value(handle.result(timeout=0.2))
    assert caught.value.task.id == handle.id


def test_each_problem_of_the_service_has_an_exception_of_its_own() -> None:
    slugs = {kind.slug for kind in [*KINDS.values(), INTERNAL]}
    assert {slug: kind.__name__ for slug, kind in api.Problem.slugs.items()} == {slug: slug.title().replace("-", "") for slug in slugs}
    assert all(getattr(api, kind.__name__) is kind for kind in api.Problem.slugs.values())


def test_a_batch_is_taken_from_whatever_brings_its_tasks(call: Caller) -> None:
    handles = call(lambda client: client.batch(New(fetch, PAGE, tags=(f"{kind}-{n}" for kind in "ab")) for n in range(3)))
    assert [handle.task.tags for handle in handles] == [("a-0", "b-0"), ("a-1", "b-1"), ("a-2", "b-2")]
    assert len(call(lambda client: client.list())) == 3


def test_a_batch_takes_dicts_as_the_service_does(call: Caller, engine: Engine) -> None:
    written = {"type": "anything", "payload": {"n": 1}, "priority": 9, "delay": timedelta(minutes=1)}
    first, second = call(lambda client: client.batch([written, {"type": fetch, "payload": PAGE}]))
    assert (first.task.payload, first.task.priority, first.task.status, second.task.type) == ({"n": 1}, 9, "scheduled", "pages.fetch")
    finish(engine, second.id, start(engine, second.id), result='{"size": 3}')
    assert call.value(second.result()) == Page(size=3)
    with pytest.raises(api.InvalidRequest, match=r"/tasks/0/prio: .*priority"):
        call(lambda client: client.batch([{"type": "anything", "payload": None, "prio": 1}]))
    assert call(lambda client: client.check(written)).priority == 9


@pytest.mark.parametrize("wrong", [None, "anything", 1, ["anything", {}]])
def test_what_is_no_task_is_refused_with_its_place_before_anything_is_sent(call: Caller, wrong: Any) -> None:
    with pytest.raises(InvalidInput, match="expected New") as refused:
        call(lambda client: client.batch([New(fetch, PAGE), wrong]))
    assert refused.value.problems == (("/tasks/1", "expected a task"),)
    assert not call(lambda client: client.list())


def test_what_can_not_be_sent_is_told_and_not_retried(call: Caller) -> None:
    loop: list[Any] = []
    loop.append(loop)
    for payload in (object(), loop, {(1, 2): 3}):
        with pytest.raises(InvalidInput, match="can't be sent as JSON"):
            call(methodcaller("submit", "anything", payload))


def test_a_handle_is_taken_by_a_types_name_or_its_handler(call: Caller, engine: Engine) -> None:
    task = call(lambda client: client.submit(fetch, PAGE))
    finish(engine, task.id, start(engine, task.id), result='{"size": 3}')
    assert call.value(call(lambda client: client.handle(task.id, "pages.fetch")).result()) == {"size": 3}
    assert call.value(call(lambda client: client.handle(str(task.id))).result()) == {"size": 3}
    assert call.value(call(lambda client: client.handle(task.id, fetch)).result()) == Page(size=3)
    for use in (methodcaller("handle", task.id, fetch.function), methodcaller("submit", fetch.function, PAGE)):
        with pytest.raises(InvalidInput, match=r"no task type: expected a handler, as @handler makes it"):
            call(use)


def test_errors_that_taskyard_has_under_the_same_name_are_one_to_catch(call: Caller) -> None:
    same = {name for name in set(api.__all__) & set(taskyard.__all__) if issubclass(getattr(taskyard, name), Exception)}
    assert same == {"UniqueConflict", "UnknownTaskType"}
    assert all(issubclass(getattr(api, name), getattr(taskyard, name)) for name in same)
    with pytest.raises(taskyard.UnknownTaskType) as unknown:
        call(lambda client: client.submit("pages.fetsh", {}))
    assert (unknown.value.type, unknown.value.near, unknown.value.problems) == ("pages.fetsh", ("pages.fetch",), (("/type", "unknown task type"),))
    holder = call(lambda client: client.submit(fetch, PAGE, unique_key="one"))
    with pytest.raises(taskyard.UniqueConflict) as conflict:
        call(lambda client: client.batch([New(fetch, PAGE), New(fetch, PAGE, unique_key="one")]))
    assert (conflict.value.unique_key, conflict.value.task_id, conflict.value.index) == ("one", str(holder.id), 1)
    assert conflict.value.pointer == "/tasks/1/unique_key"


def test_problems_say_what_is_wrong_where(call: Caller) -> None:
    with pytest.raises(api.UnknownTaskType) as unknown:
        call(lambda client: client.submit("pages.fetsh", {}))
    assert (unknown.value.status, unknown.value.slug, unknown.value.near) == (422, "unknown-task-type", ("pages.fetch",))
    with pytest.raises(api.InvalidRequest, match="/payload/depth") as invalid:
        call(lambda client: client.submit("pages.fetch", {"url": "https://x", "depth": -1}))
    assert [place.pointer for place in invalid.value.errors] == ["/payload/depth"]
    with pytest.raises(api.InvalidRequest, match="/tasks/1/payload/url"):
        call(lambda client: client.batch([New(fetch, PAGE), New("pages.fetch", {})]))
    with pytest.raises(api.NotFound) as missing:
        call(lambda client: client.get(uuid4()))
    assert missing.value.status == 404
    holder = call(lambda client: client.submit(fetch, PAGE, unique_key="one"))
    with pytest.raises(api.UniqueConflict) as conflict:
        call(lambda client: client.submit(fetch, PAGE, unique_key="one"))
    assert conflict.value.task_id == str(holder.id)
    with pytest.raises(api.IllegalTransition) as illegal:
        call(lambda client: client.release(holder.id))
    assert (illegal.value.task_status, "hold" in illegal.value.allowed) == ("pending", True)
    call(lambda client: client.hold(holder.id))
    with pytest.raises(api.VersionConflict) as changed:
        call(lambda client: client.cancel(holder.id, if_version=holder.task.version))
    assert changed.value.version == holder.task.version + 1
    call(lambda client: client.submit(fetch, PAGE, idempotency_key="k"))
    with pytest.raises(api.IdempotencyMismatch):
        call(lambda client: client.submit(fetch, PAGE, idempotency_key="k", priority=1))
    with pytest.raises(api.TooLarge):
        call(lambda client: client.submit("anything", "x" * 2_000_000))


def test_a_key_is_asked_for_and_taken(kind: type[Client | AsyncClient], api_settings: Settings, registry: Registry, engine: Engine) -> None:
    with engine.begin() as connection:
        made = keys.create(connection, "reader", scopes=["tasks:read"])
    with serving(api_settings.model_copy(update={"auth": AuthSettings(mode="keys")}), registry) as address:
        stranger, reader = Caller(kind, address, key=""), Caller(kind, address, key=made.secret)
        try:
            with pytest.raises(api.Unauthorized):
                stranger(lambda client: client.page())
            assert reader(lambda client: client.page()).items == ()
            with pytest.raises(api.Forbidden, match="tasks:write"):
                reader(lambda client: client.submit("anything", 1))
        finally:
            stranger.close()
            reader.close()


# --- all the calls ---


def test_the_calls_do_what_they_say(call: Caller, engine: Engine, api_settings: Settings) -> None:
    with engine.begin() as connection:
        sync_routes(connection, api_settings.routes)
    one, two = call(lambda client: client.batch([New(fetch, PAGE, tags=["a"], delay=timedelta(hours=1)), New("anything", {"k": 1})]))
    assert (one.task.status, two.task.payload) == ("scheduled", {"k": 1})
    checked = call(lambda client: client.check(New(fetch, PAGE)))
    # The service looks now and then who serves which queue.
    assert (checked.max_attempts, checked.warning) in ((5, None), (5, "no live worker serves the queue io"))
    assert call(lambda client: client.hold(one.id)).status == "held"
    assert call(lambda client: client.release(one.id)).status == "scheduled"
    later = datetime(2040, 1, 31, 12, tzinfo=UTC)
    changed = call(lambda client: client.update(one.id, priority=1, run_at=later, tags=["b"]))
    assert (changed.priority, changed.run_at, changed.tags) == (1, later, ("b",))
    assert call(lambda client: client.place(two.id)).position == 1
    assert call(lambda client: client.act("cancel", dry_run=True, tag="b")).model_dump() == {
        "matched": 1,
        "changed": 0,
        "would_change": ({"status": "scheduled", "becomes": "cancelled", "count": 1},),
    }
    assert call(lambda client: client.act("cancel", tag=["b", "c"])).changed == 1
    assert call(lambda client: client.retry(one.id)).status == "pending"
    assert [event.type for event in call(lambda client: client.events(one.id))][-2:] == ["task.cancelled", "task.retrying"]
    assert "pages.fetch" in [found.type for found in call(lambda client: client.task_types())]
    assert call(lambda client: client.task_type("pages.fetch")).defaults.queue == "io"
    assert call(lambda client: client.pause("io")).paused
    assert {queue.name: queue.paused for queue in call(lambda client: client.queues())}["io"]
    assert not call(lambda client: client.resume("io")).paused
    assert [found.state for found in call(lambda client: client.plugins())] == ["failed", "enabled"]
    assert [found.name for found in call(lambda client: client.notifiers())] == ["pigeon"]
    sent = call(lambda client: client.deliveries(route="all ends"))
    assert {delivery.event for delivery in sent} == {"task.submitted", "task.cancelled"}
    some = call(lambda client: client.deliveries(notifier="pigeon", event=["task.cancelled"], created_after=one.task.created_at))
    assert [delivery.event for delivery in some] == ["task.cancelled"]
    assert call(lambda client: client.redeliver_all(route="all ends")).changed == 0
    with pytest.raises(api.IllegalTransition):
        call(lambda client: client.redeliver(sent[0].id))
    told: api.Subscription = {"notifier": "pigeon", "events": ["task.failed"]}
    with pytest.raises(api.InvalidRequest) as refused:
        call(lambda client: client.submit("anything", 1, notify=[told]))
    assert [error.pointer for error in refused.value.errors] == ["/notify/0/notifier"]


def test_lists_take_fields_ids_keys_and_metadata(call: Caller) -> None:
    one = call(lambda client: client.submit(fetch, PAGE, unique_key="one", metadata={"customer": 42, "new": True}))
    two = call(lambda client: client.submit(fetch, PAGE, metadata={"customer": "42"}))
    for filters, found in (
        ({"id": [one.id]}, [one.id]),
        ({"unique_key": "one"}, [one.id]),
        ({"metadata": {"customer": 42}}, [two.id, one.id]),
        ({"metadata": {"customer": 42, "new": True}}, [one.id]),
    ):
        assert [task.id for task in call(methodcaller("list", **filters))] == found
        assert [task.id for task in call(methodcaller("page", **filters)).items] == found
    (light,) = call(lambda client: client.page(id=one.id, fields=["metadata"])).items
    assert (light.payload, light.metadata, light.status) == (None, {"customer": 42, "new": True}, "pending")
    assert {task.payload for task in call(lambda client: client.list(fields=()))} == {None}
    gone = call(lambda client: client.submit(fetch, PAGE))
    call(lambda client: client.cancel(gone.id))
    assert [task.ended for task in call(lambda client: client.list(fields=["tags"]))] == [True, False, False]
    would = call(lambda client: client.act("hold", dry_run=True, metadata={"customer": 42}))
    assert [(one.status, one.becomes, one.count) for one in would.would_change] == [("pending", "held", 1)]


def test_who_submits_to_a_queue_without_a_worker_is_told(call: Caller) -> None:
    call(lambda client: client.submit(fetch, PAGE))
    deadline = time.monotonic() + PATIENCE
    while (handle := call(lambda client: client.submit(fetch, PAGE))).warning is None:
        assert time.monotonic() < deadline
    assert handle.warning == "no live worker serves the queue io"


def test_a_list_goes_over_all_pages(call: Caller) -> None:
    made = call(lambda client: client.batch([New("anything", n, tags=[f"t{n % 2}"]) for n in range(450)]))
    ids = [handle.id for handle in reversed(made)]
    assert [task.id for task in call(lambda client: client.list())] == ids
    assert [task.id for task in call(lambda client: client.list(tag="t1", status=["pending"]))] == ids[::2]
    first = call(lambda client: client.page(limit=10))
    second = call(lambda client: client.page(limit=10, cursor=first.next_cursor))
    assert [task.id for task in (*first.items, *second.items)] == ids[:20]


# --- on a bad wire ---


def test_an_action_on_more_than_one_request_moves_is_gone_on_with(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MOST", 10)
    monkeypatch.setattr(actions, "PAGE", 10)
    monkeypatch.setattr(actions, "BATCH", 5)
    call(lambda client: client.batch([New(fetch, PAGE, tags=["many"]) for _ in range(25)]))
    assert [(one.status, one.count) for one in call(lambda client: client.act("hold", dry_run=True, tag="many")).would_change] == [("pending", 25)]
    assert call(lambda client: client.act("cancel", tag="many")).model_dump(exclude_unset=True) == {"matched": 25, "changed": 25}


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    made = Proxy(url, free_port("127.0.0.1", 0))
    yield made
    made.close()


def test_submits_that_are_retried_three_times_under_resets_make_exactly_one_task_each(kind: type[Client | AsyncClient], proxy: Proxy, engine: Engine) -> None:
    """Each is cut before the service has it, cut after, and let through. Eight at once."""
    traps = [proxy.cut_at(b"POST /api/v1/tasks", f"task-{n}-".encode(), forward=forward) for n in range(24) for forward in (False, True)]
    address = f"http://127.0.0.1:{proxy.port}"
    made = (_submit_threaded if kind is Client else _submit_async)(address)
    assert all(trap.sprung.is_set() for trap in traps)
    with engine.connect() as connection:
        stored = set(connection.execute(text("SELECT id FROM tasks")).scalars())
    assert len(made) == 24
    assert {handle.id for handle in made} == stored
    assert len(stored) == 24


def _submit_threaded(address: str) -> list[Any]:
    with Client(address, retries=QUICK) as client, ThreadPoolExecutor(8) as threads:
        return list(threads.map(lambda n: client.submit("anything", f"task-{n}-"), range(24)))


def _submit_async(address: str) -> list[Any]:
    async def submit() -> list[Any]:
        async with AsyncClient(address, retries=QUICK) as client:
            return list(await asyncio.gather(*(client.submit("anything", f"task-{n}-") for n in range(24))))

    return asyncio.run(submit())


def test_a_batch_under_resets_is_made_once(kind: type[Client | AsyncClient], proxy: Proxy, engine: Engine) -> None:
    for forward in (False, True):
        proxy.cut_at(b"POST /api/v1/tasks/batch", b"anything", forward=forward)
    caller = Caller(kind, f"http://127.0.0.1:{proxy.port}")
    made = caller(lambda client: client.batch([New("anything", n) for n in range(5)]))
    caller.close()
    assert [handle.task.payload for handle in made] == list(range(5))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM tasks")).scalar_one() == 5


def test_a_verb_that_was_cut_off_is_not_sent_twice(kind: type[Client | AsyncClient], url: str, proxy: Proxy) -> None:
    caller, direct = Caller(kind, f"http://127.0.0.1:{proxy.port}"), Client(url)
    task = direct.submit("anything", 1)
    proxy.cut_at(b"POST /api/v1/tasks", b"/hold", forward=True)
    with pytest.raises(api.Unreachable) as caught:
        caller(lambda client: client.hold(task.id))
    assert caught.value.sent
    while task.refresh().status != "held":
        pass
    caller.close()
    direct.close()


def test_a_task_is_followed_over_connections_that_are_cut_without_a_gap_or_a_repeat(kind: type[Client | AsyncClient], proxy: Proxy, engine: Engine) -> None:
    caller = Caller(kind, f"http://127.0.0.1:{proxy.port}")
    handle = caller(lambda client: client.submit("anything", 1))
    count, cuts = 600, threading.Event()

    def live() -> None:
        for _ in range(6):
            tell(engine, handle.id, count // 6)
            proxy.cut()
        cuts.set()
        with engine.begin() as connection:
            lifecycle.cancel(connection, "default", handle.id)

    thread = threading.Thread(target=live)
    thread.start()
    events = caller.value(handle.follow())
    thread.join()
    caller.close()
    assert cuts.is_set()
    assert proxy.connections >= 4
    assert [event.type for event in events] == ["task.submitted", *["task.updated"] * count, "task.cancelled"]
    assert [event.data["n"] for event in events[1:-1]] == [*range(count // 6)] * 6
    with engine.connect() as connection:
        written = connection.execute(text("SELECT id::text FROM events WHERE task_id = :id ORDER BY id"), {"id": handle.id}).scalars()
        assert [event.id for event in events] == list(written)


def test_following_goes_on_after_an_event_and_tells_progress(call: Caller, engine: Engine) -> None:
    handle = call(lambda client: client.submit(fetch, PAGE))
    fence = start(engine, handle.id)
    with engine.begin() as connection:
        lifecycle.progress(connection, {(handle.id, fence): {"fraction": 0.5, "message": "half"}})
    finish(engine, handle.id, fence, result='{"size": 7}')
    events = call.value(handle.follow())
    assert [event.type for event in events] == ["task.submitted", "task.started", "task.progress", "task.succeeded"]
    assert (events[2].data["fraction"], events[2].data["message"]) == (0.5, "half")
    assert [event.id for event in call.value(handle.follow(after=events[1].id))] == [event.id for event in events[2:]]
    assert call.value(handle.follow(after=events[-1].id)) == []
    with pytest.raises(api.NotFound):
        call(lambda client: client.follow(uuid4()))


def test_all_tasks_can_be_watched_and_left_at_any_time(url: str) -> None:
    with Client(url) as client:
        handle = client.submit("anything", 1, tags=["told"])
        client.submit("anything", 2)
        client.cancel(handle.id)
        events = client.watch(after="0", tag="told")
        assert [next(events).task_id for _ in range(2)] == [handle.id] * 2
        events.close()  # type: ignore[attr-defined]  # it is a generator; an Iterator promises no close
        assert client.get(handle.id).status == "cancelled"


def test_a_service_that_restarts_is_waited_for(kind: type[Client | AsyncClient], proxy: Proxy) -> None:
    caller = Caller(kind, f"http://127.0.0.1:{proxy.port}")
    proxy.refuse()
    threading.Timer(0.05, proxy.heal).start()
    caller.client._core.exchange = replace(caller.client._core.exchange, retries=Retries(most=20, first=0.05))
    assert caller(lambda client: client.submit("anything", 1)).task.status == "pending"
    caller.close()


def test_where_nobody_answers_it_is_told_that_nothing_was_sent(kind: type[Client | AsyncClient]) -> None:
    caller = Caller(kind, f"http://127.0.0.1:{free_port('127.0.0.1', 0)}")
    with pytest.raises(api.Unreachable, match="Nothing answers at") as caught:
        caller(lambda client: client.submit("anything", 1))
    assert not caught.value.sent
    caller.close()


class Grumpy:
    """An HTTP service that answers with what it was told, one after the other, and then with nothing but an empty page of tasks."""

    EMPTY: ClassVar[bytes] = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{"items":[]}'

    def __init__(self, *answers: tuple[int, str]) -> None:
        self.answers, self.asked = list(answers), 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                while b"\r\n\r\n" not in connection.recv(65536):
                    pass
                self.asked += 1
                status, after = self.answers.pop(0) if self.answers else (200, "")
                problem = f'{{"type": "urn:taskyard:problem:unavailable", "title": "No", "status": {status}}}'
                refusal = f"HTTP/1.1 {status} No\r\nRetry-After: {after}\r\nContent-Length: {len(problem)}\r\nConnection: close\r\n\r\n{problem}"
                connection.sendall(self.EMPTY if status == 200 else refusal.encode())

    def close(self) -> None:
        self._listening.close()


@pytest.mark.parametrize(
    ("answers", "asked", "fails"),
    [
        ([(503, "0"), (429, "0"), (502, "")], 4, None),
        ([(503, "3600")], 1, api.Unavailable),
        ([(503, "")] * 6, 6, api.Unavailable),
        ([(500, "")], 1, api.Unavailable),
    ],
)
def test_a_call_that_may_be_repeated_is_as_the_service_says(kind: type[Client | AsyncClient], answers: Any, asked: int, fails: Any) -> None:
    grumpy = Grumpy(*answers)
    caller = Caller(kind, grumpy.url)
    if fails:
        with pytest.raises(fails) as caught:
            caller(lambda client: client.page())
        assert caught.value.retry_after == (float(answers[0][1]) if answers[0][1] else None)
    else:
        assert caller(lambda client: client.page()).items == ()
    assert grumpy.asked == asked
    caller.close()
    grumpy.close()


def test_a_verb_is_repeated_only_where_it_was_limited(kind: type[Client | AsyncClient]) -> None:
    grumpy = Grumpy((429, "0"), (503, "0"))
    caller = Caller(kind, grumpy.url)
    with pytest.raises(api.Unavailable):
        caller(lambda client: client.cancel(uuid4()))
    assert grumpy.asked == 2
    caller.close()
    grumpy.close()


def test_what_is_no_taskyard_is_told(kind: type[Client | AsyncClient]) -> None:
    grumpy = Grumpy()
    caller = Caller(kind, grumpy.url)
    with pytest.raises(api.UnexpectedAnswer, match="Is this its address"):
        caller(lambda client: client.get(uuid4()))
    with pytest.raises(api.UnexpectedAnswer, match="no stream of events"):
        caller(lambda client: client.follow(uuid4()))
    caller.close()
    grumpy.close()


@pytest.mark.parametrize("address", ["nonsense", "ftp://x", "http://", "http://x:99999", "http://x?a=b"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="expected an address such as"):
        Client(address)


def test_a_key_that_can_not_be_sent_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Client("http://127.0.0.1", "ty_geheim\n")
    assert "geheim" not in str(caught.value)


def test_pauses_grow_up_to_a_bound_and_keep_to_what_the_service_asks() -> None:
    retries = Retries(most=8, first=1.0, longest=10.0, patience=60.0)
    pauses = [retries.pause(made) for made in range(1, 9)]
    assert all(
        pause is not None and low <= pause <= high for pause, low, high in zip(pauses, (0.5, 1, 2, 4, 5, 5, 5, 5), (1, 2, 4, 8, 10, 10, 10, 10), strict=True)
    )
    assert retries.pause(9) is None
    assert retries.pause(1, 30.0) == 30.0
    assert retries.pause(1, 61.0) is None
