"""What an operator sees from outside: the metrics, the health, the ids of requests."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from httpx2 import AsyncClient
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy import Engine, text
from structlog.contextvars import get_contextvars
from structlog.testing import capture_logs

from taskyard import dispatchers, gauges, metrics
from taskyard.gauges import GAUGES
from taskyard.metrics import SHARED, Tally
from taskyard.plugins import Registry
from taskyard.schema_version import TABLE as VERSIONS
from taskyard.settings import DatabaseSettings, Settings
from taskyard_api import watch
from taskyard_api.app import create_app
from taskyard_api.exposition import Exposition
from taskyard_api.glimpse import PATIENCE
from taskyard_api.measures import OWN
from taskyard_api.service import Service

from .conftest import client_of, force, submit
from .test_service import served, silent_port

__all__ = ["silent_port"]
pytestmark = pytest.mark.anyio
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(exposed: str) -> Samples:
    """Every sample, by name and labels, as Prometheus' own reader sees them."""
    found: Samples = {}
    for family in text_string_to_metric_families(exposed):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def at(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


async def scraped(client: AsyncClient) -> Samples:
    answer = await client.get("http://test.localhost/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parsed(answer.text)


async def flush(app: FastAPI) -> None:
    service: Service = app.state.service
    await service.measures.flush()


async def test_one_scrape_shows_what_all_processes_counted_and_what_waits(client: AsyncClient, app: FastAPI, engine: Engine) -> None:
    tasks = [await submit(client) for _ in range(3)]
    await submit(client, delay=3600)
    await submit(client, "pages.fetch", {"url": "http://x"})
    await client.post(f"/tasks/{tasks[0]['id']}/cancel")
    force(engine, tasks[1]["id"], "running")
    worker = Tally(["anything"], ["default"])
    metrics.count_claimed(worker, [{"waited": 0.3, "type": "anything", "queue": "default"}])  # type: ignore[list-item]  # like a row
    with engine.connect() as connection:
        metrics.flush(connection, worker)
    await flush(app)
    seen = await scraped(client)
    default = {"type": "anything", "queue": "default"}
    assert at(seen, "taskyard_tasks_submitted_total", **default) == 4
    assert at(seen, "taskyard_tasks_finished_total", **default, status="cancelled") == 1
    assert {status: at(seen, "taskyard_tasks", **default, status=status) for status in ("scheduled", "pending", "running")} == {
        "scheduled": 1,
        "pending": 1,
        "running": 1,
    }
    assert at(seen, "taskyard_tasks", type="pages.fetch", queue="io", status="pending") == 1
    assert at(seen, "taskyard_task_wait_seconds_count", **default) == 1
    assert [at(seen, "taskyard_task_wait_seconds_bucket", **default, le=le) for le in ("0.25", "0.5", "+Inf")] == [0, 1, 1]
    assert at(seen, "taskyard_stale_writes_total", verb="finish") == 0, "a series that begins at 1 shows no increase"
    assert at(seen, "taskyard_tasks_lost_total") == 0
    assert at(seen, "taskyard_database_up") == 1
    assert at(seen, "taskyard_workers_alive") == 0
    assert at(seen, "taskyard_http_request_seconds_count", method="POST", route="/api/v1/tasks/{task_id}/cancel", status="200") == 1
    assert at(seen, "process_resident_memory_bytes") > 1e6


async def test_what_clients_name_does_not_grow_the_label_sets(client: AsyncClient, app: FastAPI) -> None:
    await flush(app)
    before = set(await scraped(client))
    for n in range(30):
        await submit(client, queue=f"hostile-{n}")
        await client.post("/tasks", json={"type": f"hostile.{n}", "payload": None})
        await client.get(f"/hostile/{n}")
        await client.request(f"HOSTILE{n}", "/tasks")
        await client.post(f"/queues/hostile-{n}/pause")
    await flush(app)
    seen = await scraped(client)
    assert not [key for key in seen if "hostile" in str(key).lower()]
    grown = {(name, tuple(item for item in labels if item[0] != "le")) for name, labels in set(seen) - before}
    assert len(grown) < 30
    assert at(seen, "taskyard_tasks_submitted_total", type="anything", queue="other") == 30
    assert at(seen, "taskyard_tasks", type="anything", queue="other", status="pending") == 30
    assert at(seen, "taskyard_queue_paused", queue="other") == 1


async def test_the_oldest_and_the_window_and_a_paused_queue_are_seen(client: AsyncClient, app: FastAPI, engine: Engine) -> None:
    first, _ = [await submit(client) for _ in range(2)]
    with engine.begin() as connection:
        connection.execute(text("UPDATE tasks SET created_at = now() - interval '500 s' WHERE id = :id"), {"id": first["id"]})
        connection.execute(text("UPDATE tasks SET status = 'queued', queued_at = now() WHERE id = :id"), {"id": first["id"]})
        connection.execute(text("INSERT INTO workers (id, name, queues, slots) VALUES (gen_random_uuid(), 'w', '{default,night}', '{\"sync\": 4}')"))
    await client.post("/queues/io/pause")
    seen = await scraped(client)
    assert 500 <= at(seen, "taskyard_oldest_pending_seconds", queue="default") < 560, "a message that nobody takes is no start"
    assert at(seen, "taskyard_oldest_pending_seconds", queue="io") == 0
    assert at(seen, "taskyard_window_fill", queue="default", lane="sync") == 1
    assert at(seen, "taskyard_window_size") == 256
    assert at(seen, "taskyard_queue_paused", queue="io") == 1
    assert at(seen, "taskyard_queue_paused", queue="default") == 0
    assert (at(seen, "taskyard_workers_alive"), at(seen, "taskyard_worker_slots", lane="sync")) == (1, 4)
    with engine.begin() as connection:
        connection.execute(text("UPDATE tasks SET fence = 1, attempt = 1, updated_at = now() - interval '50 s'"))
    seen = await scraped(client)
    assert 50 <= at(seen, "taskyard_oldest_pending_seconds", queue="default") < 110, "one that ran before waits since it came back in line"


async def test_a_scrape_before_anything_happened_has_zero_for_what_alerts_are_about(client: AsyncClient, registry: Registry) -> None:
    seen = await scraped(client)
    assert {name: at(seen, "taskyard_deliveries_total", notifier=name, outcome="dead") for name in registry.notifiers} == {"pigeon": 0}
    assert at(seen, "taskyard_tasks_finished_total", type="anything", queue="default", status="failed") == 0
    assert at(seen, "taskyard_tasks_submitted_total", type="anything", queue="other") == 0
    assert at(seen, "taskyard_task_run_seconds_count", type="pages.fetch", queue="io") == 0
    assert at(seen, "taskyard_tasks_purged_total", status="failed") == 0
    assert at(seen, "taskyard_tasks_parked", type="anything", queue="default") == 0
    assert at(seen, "taskyard_http_request_seconds_count", method="POST", route="/api/v1/tasks", status="503") == 0
    assert at(seen, "taskyard_window_fill", queue="default", lane="async") == 0


@pytest.mark.parametrize(("errors", "up"), [((), 0), ((None,), 1), (("refused",), 0), (("refused", None), 1)])
async def test_the_broker_is_up_if_a_live_dispatcher_reaches_it(client: AsyncClient, engine: Engine, errors: tuple[str | None, ...], up: int) -> None:
    with engine.begin() as connection:
        for number, error in enumerate(errors):
            dispatchers.beat(connection, UUID(int=number), "here", error)
    assert at(await scraped(client), "taskyard_broker_up") == up


async def test_parked_tasks_are_counted_and_are_the_oldest_that_wait(client: AsyncClient, engine: Engine) -> None:
    await submit(client, queue="io")
    with engine.begin() as connection:
        connection.execute(text("UPDATE tasks SET created_at = now() - interval '500 s', next_run_at = now() + interval '30 s'"))
    seen = await scraped(client)
    assert at(seen, "taskyard_tasks_parked", type="anything", queue="io") == 1
    assert 500 <= at(seen, "taskyard_oldest_pending_seconds", queue="io") < 560


async def test_every_metric_that_is_defined_is_exposed_and_no_other(client: AsyncClient) -> None:
    exposed = (await client.get("http://test.localhost/metrics")).text
    named = {line.split()[2] for line in exposed.splitlines() if line.startswith("# TYPE")}
    assert {name for name in named if not name.startswith("process_")} == {metric.name for metric in (*SHARED, *GAUGES, *OWN)}


async def test_a_label_may_hold_anything() -> None:
    evil = 'a"b\\c\nd{e="f"} 1'
    exposed = Exposition([gauges.PAUSED], {(gauges.PAUSED.name, (evil,)): 1.0}).text().decode()
    assert at(parsed(exposed), gauges.PAUSED.name, queue=evil) == 1


async def test_counts_of_a_version_with_other_buckets_or_labels_are_read_as_far_as_they_go() -> None:
    stored = {
        (f"{metrics.WAIT.name}_bucket", ("t", "q", "0.007")): 2.0,
        (f"{metrics.WAIT.name}_bucket", ("t", "q", "+Inf")): 1.0,
        (f"{metrics.WAIT.name}_sum", ("t", "q")): 9.0,
        (metrics.LOST.name, ("of old",)): 5.0,
    }
    seen = parsed(Exposition([metrics.WAIT, metrics.LOST], stored).text().decode())
    assert [at(seen, "taskyard_task_wait_seconds_bucket", type="t", queue="q", le=le) for le in ("0.005", "0.01", "+Inf")] == [0, 2, 3]
    assert at(seen, "taskyard_tasks_lost_total") == 0


async def test_without_a_database_a_scrape_shows_the_process_within_two_seconds(registry: Registry, silent_port: int) -> None:
    for port in (1, silent_port):
        async with served(f"postgresql://postgres@127.0.0.1:{port}/none", registry) as client:
            async with asyncio.timeout(2 * PATIENCE):
                seen = await scraped(client)
            assert at(seen, "taskyard_database_up") == 0
            assert at(seen, "process_resident_memory_bytes") > 1e6
            assert not [name for name, _ in seen if name.startswith("taskyard_tasks")]


@pytest.fixture
async def small(database_url: str, registry: Registry) -> AsyncIterator[tuple[FastAPI, AsyncClient]]:
    """A service with one connection."""
    app = create_app(Settings(database=DatabaseSettings(url=SecretStr(database_url), pool_size=1, connect_timeout=20)), registry)
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield app, client


async def test_ready_and_metrics_answer_in_two_seconds_when_no_connection_is_free(small: tuple[FastAPI, AsyncClient]) -> None:
    app, client = small
    service: Service = app.state.service
    await service.read(lambda connection: None)
    async with service.engine.connect():
        async with asyncio.timeout(2 * PATIENCE):
            ready, seen = await asyncio.gather(client.get("http://test.localhost/health/ready"), scraped(client))
        assert ready.status_code == 503
        assert "All connections of this process are in use" in ready.json()["parts"]["database"]
        assert at(seen, "taskyard_database_up") == 0
        assert at(seen, "taskyard_database_pool_connections", state="in_use") == 1
    assert (await client.get("http://test.localhost/health/ready")).status_code == 200, "it recovers by itself"


async def test_ready_names_the_part_and_workers_and_dispatchers_are_shown_and_decide_nothing(client: AsyncClient, engine: Engine) -> None:
    async def parts() -> tuple[int, dict[str, str]]:
        answer = await client.get("http://test.localhost/health/ready")
        return answer.status_code, answer.json()["parts"]

    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as dispatcher:
        dispatcher.execute(text("SET application_name = 'taskyard-dispatcher'"))
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO workers (id, name, queues) VALUES (gen_random_uuid(), 'w', '{}')"))
            dispatchers.beat(connection, UUID(int=1), "here", None)
        assert await parts() == (200, dict.fromkeys(("database", "schema", "writes", "dispatcher", "workers", "broker"), "ok"))
        with engine.begin() as connection:
            dispatchers.beat(connection, UUID(int=2), "there", "amqp://guest@broker.internal: refused")
        status, named = await parts()
        assert (status, named["broker"][:31]) == (200, "away for 1 of 2 dispatchers, wh")
        assert "internal" not in named["broker"], "whoever asks need not know where the broker is"
        dispatcher.execute(text("SET application_name = 'else'"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE workers SET beat_at = now() - interval '1 hour'"))
        connection.execute(text("UPDATE dispatchers SET beat_at = now() - interval '1 hour'"))
    status, named = await parts()
    assert status == 200
    assert {name for name, state in named.items() if state != "ok"} == {"dispatcher", "workers", "broker"}
    for wrong, right, said in (
        (f"UPDATE {VERSIONS} SET version_num = '0001'", "SELECT 1", "at 0001, needs"),
        (f"ALTER TABLE {VERSIONS} RENAME TO hidden", f"ALTER TABLE hidden RENAME TO {VERSIONS}", "at nothing, needs"),
    ):
        with engine.begin() as connection:
            connection.execute(text(wrong))
        try:
            status, named = await parts()
        finally:
            # The tests of the service share this database.
            with engine.begin() as connection:
                connection.execute(text(right))
        assert status == 503
        assert named["database"] == "ok"
        assert said in named["schema"]
        assert "taskyard db upgrade" in named["schema"]


# --- requests ---


@pytest.fixture
def told_all(caplog: pytest.LogCaptureFixture) -> None:
    """Lines for debugging are written."""
    caplog.set_level(logging.DEBUG, logger="taskyard_api.watch")


@pytest.mark.parametrize("given", ["abc-123", "0" * 128, "a.b_c~d:e/f+g=h@i"])
async def test_a_clients_request_id_is_answered_and_logged(client: AsyncClient, told_all: None, given: str) -> None:
    with capture_logs() as lines:
        answer = await client.post("/tasks", json={"type": "anything", "payload": 1}, headers={"X-Request-ID": given})
    assert answer.headers["x-request-id"] == given
    [line] = [line for line in lines if line["event"] == "request.done"]
    assert (line["method"], line["path"], line["status"], line["log_level"], line["task_id"]) == ("POST", "/api/v1/tasks", 201, "info", answer.json()["id"])


@pytest.mark.parametrize("given", [b"", b"0" * 129, b"a b", b"a\tb", b'"x"', b"x\x1b[31m", "é".encode(), b"x,y"])
async def test_a_request_id_that_could_break_a_header_or_a_log_is_replaced(client: AsyncClient, given: bytes) -> None:
    answer = await client.get("/tasks", headers=[(b"X-Request-ID", given)])
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.headers["x-request-id"].isalnum()


async def test_a_request_that_goes_well_is_logged_for_debugging_alone_and_one_that_fails_for_all(
    client: AsyncClient, told_all: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long a busy machine takes.
    monkeypatch.setattr(watch, "SLOW", math.inf)
    with capture_logs() as lines:
        await client.get("/tasks")
        await client.get("/tasks/not-a-uuid")
        await client.get("/nowhere")
    told = [(line["path"], line["status"], line["log_level"]) for line in lines if line["event"] == "request.done"]
    assert told == [("/api/v1/tasks", 200, "debug"), ("/api/v1/tasks/{task_id}", 404, "info"), ("other", 404, "info")]


async def test_the_lines_of_one_request_have_its_id_and_those_of_others_theirs(app: FastAPI, client: AsyncClient) -> None:
    seen: list[tuple[str, Any]] = []

    @app.get("/probe/{name}")
    async def probe(name: str) -> None:
        await asyncio.sleep(0)
        seen.append((name, get_contextvars()["request_id"]))

    await asyncio.gather(*(client.get(f"http://test.localhost/probe/{n}", headers={"X-Request-ID": f"id-{n}"}) for n in range(20)))
    assert sorted(seen) == sorted((str(n), f"id-{n}") for n in range(20))
    assert "request_id" not in get_contextvars()
