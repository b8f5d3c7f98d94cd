"""What a ledger does with requests that PostgreSQL refuses: none is dropped, none holds up another, and those that cost a slot end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from structlog.testing import capture_logs

from taskyard.database import sync_engine
from taskyard.metrics import Tally
from taskyard.records import Finished
from taskyard.settings import DatabaseSettings, DispatchSettings, Settings
from taskyard_worker.ledger import Ledger
from taskyard_worker.ledger_requests import FOREVER, Request
from taskyard_worker.waiting_requests import LONGEST_PAUSE, WaitingRequests
from tests.core.life import TYPES, Life, new

NOBODY = cast("asyncio.Future[Any]", None)


@pytest.fixture
def life(engine: Engine) -> Life:
    return Life(engine)


def _with_ledger(engine: Engine, url: str, worker: UUID, work: Callable[[Ledger], Coroutine[Any, Any, None]], sweep_after: float = 30.0) -> None:
    settings = Settings(database=DatabaseSettings(url=SecretStr(url)), dispatch=DispatchSettings(sweep_after=sweep_after))
    ledger = Ledger(engine, settings, worker, TYPES, Tally(TYPES, ["default"]))

    async def run() -> None:
        async with asyncio.timeout(60):
            await work(ledger)

    ledger.start()
    try:
        asyncio.run(run())
    finally:
        ledger.stop(20)


def _one(connection: Connection) -> int:
    return int(connection.execute(text("SELECT 1")).scalar_one())


def _of_missing_table(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM not_there_yet")).scalar_one())


def test_one_request_that_is_refused_waits_while_the_others_of_its_commit_are_written(engine: Engine, database_url: str, life: Life) -> None:
    worker = life.worker()
    task = life.queued()

    async def work(ledger: Ledger) -> None:
        refused = ledger.call(_of_missing_table, patience=FOREVER)
        [row] = await ledger.claim("default", "sync", [task])
        ended = await ledger.finish([Finished(task, row["fence"], "succeeded", result="1")], {})
        assert ended[task, row["fence"]]["status"] == "succeeded"
        assert [await ledger.call(_one) for _ in range(20)] == [1] * 20
        assert not refused.done()
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE not_there_yet ()"))
        assert await refused == 0

    _with_ledger(engine, database_url, worker, work)


def test_wrong_data_is_refused_at_once_and_harms_nobody(engine: Engine, database_url: str, life: Life) -> None:
    worker = life.worker()
    tasks = [life.queued(), life.queued()]

    async def work(ledger: Ledger) -> None:
        fences = {row["id"]: row["fence"] for row in await ledger.claim("default", "sync", tasks)}
        ends = [Finished(tasks[0], fences[tasks[0]], "succeeded", result='"\\u0000"'), Finished(tasks[1], fences[tasks[1]], "succeeded", result="2")]
        bad, good = await asyncio.gather(*(ledger.finish([end], {}) for end in ends), return_exceptions=True)
        assert isinstance(bad, DBAPIError)
        assert not isinstance(good, BaseException)
        assert good[tasks[1], fences[tasks[1]]]["status"] == "succeeded"

    _with_ledger(engine, database_url, worker, work)


def test_a_success_is_recorded_as_one_although_the_sequence_of_events_is_behind(engine: Engine, database_url: str, life: Life) -> None:
    """As after a switchover to a replica that was not told of sequences. Each try draws a number, so the tries end of themselves, too."""
    worker = life.worker()
    task = life.queued()

    async def work(ledger: Ledger) -> None:
        [row] = await ledger.claim("default", "sync", [task])
        life.execute("SELECT setval('events_id_seq', 1, false)")
        ended = await ledger.finish([Finished(task, row["fence"], "succeeded", result="1")], {})
        assert ended[task, row["fence"]]["status"] == "succeeded"

    with capture_logs() as logs:
        _with_ledger(engine, database_url, worker, work)
    assert any("pk_events" in str(line.get("error")) and "taskyard doctor" in str(line["error"]) for line in logs)


def test_a_success_waits_with_its_children_while_a_trigger_keeps_them_out(engine: Engine, database_url: str, life: Life) -> None:
    worker = life.worker()
    task, other = life.queued(), life.queued()
    child = new(parent_id=task, queue="children")
    keep_out = "CREATE TRIGGER keep_out BEFORE INSERT ON tasks FOR EACH ROW WHEN (NEW.queue = 'children') EXECUTE FUNCTION keep_out()"

    async def work(ledger: Ledger) -> None:
        fences = {row["id"]: row["fence"] for row in await ledger.claim("default", "sync", [task, other])}
        life.execute("CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        life.execute(keep_out)
        ends = asyncio.ensure_future(ledger.finish([Finished(task, fences[task], "succeeded", result="1")], {(task, fences[task]): [child]}))
        assert (await ledger.finish([Finished(other, fences[other], "succeeded", result="1")], {}))[other, fences[other]]["status"] == "succeeded"
        while not any("trigger keep_out on tasks" in str(line.get("error")) for line in logs):
            assert not ends.done()
            await ledger.call(_one)
        life.execute("DROP TRIGGER keep_out ON tasks")
        assert (await ends)[task, fences[task]]["status"] == "succeeded"

    with capture_logs() as logs:
        _with_ledger(engine, database_url, worker, work)
    assert life.status(child.id) == "pending"


def test_a_request_that_nobody_must_repeat_is_answered_with_its_error(engine: Engine, database_url: str, life: Life) -> None:
    async def work(ledger: Ledger) -> None:
        with pytest.raises(ProgrammingError, match="not_there_yet"):
            await ledger.call(_of_missing_table)

    _with_ledger(engine, database_url, life.worker(), work)


def test_a_claim_that_alone_is_refused_gives_its_slot_back_after_a_sweep(engine: Engine, database_url: str, life: Life) -> None:
    worker = life.worker()
    task = life.queued()

    async def work(ledger: Ledger) -> None:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE tasks RENAME COLUMN lost TO gone"))
        claimed = asyncio.ensure_future(ledger.claim("default", "sync", [task]))
        while not claimed.done():
            assert await ledger.call(_one) == 1
            await asyncio.sleep(0.01)
        with pytest.raises(ProgrammingError, match="lost"):
            await claimed
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE tasks RENAME COLUMN gone TO lost"))

    _with_ledger(engine, database_url, worker, work, sweep_after=0.5)


def test_a_success_is_recorded_as_one_although_the_session_has_lost_its_prepared_statements(database_url: str, life: Life) -> None:
    """As behind a pooler that gives the worker another session."""
    worker = life.worker()
    roles = sync_engine(DatabaseSettings(url=SecretStr(database_url)), role="worker", pool_size=1)

    async def work(ledger: Ledger) -> None:
        for number in range(12):
            task = life.queued()
            [row] = await ledger.claim("default", "sync", [task])
            if number > 8:
                # In a DO block, so that the driver does not see it.
                await ledger.call(lambda connection: connection.execute(text("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")))
            ended = await ledger.finish([Finished(task, row["fence"], "succeeded", result="1")], {})
            assert ended[task, row["fence"]]["status"] == "succeeded"

    with capture_logs() as logs:
        _with_ledger(roles, database_url, worker, work)
    roles.dispose()
    assert any("prepared statement" in str(line.get("error")) for line in logs), "no statement was prepared: this proves nothing"


# --- when what is tried again ---


class Clock:
    """Ours to move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def waiting(clock: Clock) -> WaitingRequests:
    return WaitingRequests(clock)


def _added(waiting: WaitingRequests, patience: float = FOREVER) -> Request:
    request = Request(NOBODY, patience=patience)
    waiting.add(request)
    return request


def test_while_nothing_can_be_written_new_requests_wait_for_the_next_try(waiting: WaitingRequests, clock: Clock) -> None:
    old = _added(waiting)
    assert waiting.tried(waiting.take(), [old]) == []
    new = _added(waiting)
    assert not waiting._is_due()
    clock.now += LONGEST_PAUSE
    assert waiting.take() == [old, new]


def test_while_something_can_be_written_new_requests_do_not_wait_for_a_refused_one(waiting: WaitingRequests, clock: Clock) -> None:
    bad, good = _added(waiting), _added(waiting)
    assert waiting.tried(waiting.take(), [bad]) == []
    del good
    new = _added(waiting)
    assert waiting.take() == [new]
    assert waiting.tried([new], []) == []
    clock.now += LONGEST_PAUSE
    assert waiting.take() == [bad]


def test_a_request_is_given_up_only_while_others_are_written(waiting: WaitingRequests, clock: Clock) -> None:
    claim = _added(waiting, patience=30)
    for _ in range(100):
        assert waiting.tried(waiting.take(), [claim]) == []
        clock.now += LONGEST_PAUSE
    other = _added(waiting)
    assert waiting.tried(waiting.take(), [claim]) == [claim]
    assert len(waiting) == 0
    del other


def test_an_end_is_never_given_up(waiting: WaitingRequests, clock: Clock) -> None:
    end = _added(waiting)
    for _ in range(1000):
        _added(waiting)
        assert waiting.tried(waiting.take(), [end]) == []
        clock.now += LONGEST_PAUSE
    assert waiting.take() == [end]


def test_tries_come_at_most_so_far_apart(waiting: WaitingRequests, clock: Clock) -> None:
    end = _added(waiting)
    for _ in range(40):
        assert waiting.tried(waiting.take(), [end]) == []
        clock.now += LONGEST_PAUSE
    assert waiting._is_due()
