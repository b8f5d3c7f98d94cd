"""A REST service in this process, on a database of the test's own, with a few task types."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any, ClassVar, Literal

import pluggy
import pytest
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, SecretStr, field_validator
from sqlalchemy import Engine, text

from taskyard import Context, Retry, handler, hookspecs
from taskyard.notifiers import DeliveryContext, Event
from taskyard.plugins import Plugin, Registry
from taskyard.schema_version import TABLE as VERSIONS
from taskyard.settings import DatabaseSettings, Route, Settings
from taskyard_api.app import create_app
from tests.databases import admin_engine, cloned, empty


class Fetch(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: HttpUrl
    depth: int = Field(1, ge=0)
    when: datetime | None = None


class Page(BaseModel):
    size: int


@handler("pages.fetch", retry=Retry(max_attempts=5), timeout=30, queue="io", priority=6)
async def fetch(payload: Fetch, ctx: Context) -> Page:
    """Fetch a page and say how large it is."""
    return Page(size=0)


class Circle(BaseModel):
    kind: Literal["circle"]
    radius: float


class Square(BaseModel):
    kind: Literal["square"]
    side: float


@handler("shapes.draw")
def draw(payload: Circle | Square) -> None:
    """Draw a shape."""


@handler("anything")
def anything(payload: Any) -> Any:
    """Take whatever comes."""


class Breaking(BaseModel):
    """No example of it can be made, and none would be valid."""

    next: Breaking | None
    what: str

    @field_validator("what")
    @classmethod
    def _break(cls, value: str) -> str:
        raise RuntimeError("a bug in a validator")


@handler("breaks")
def breaks(payload: Breaking) -> None:
    """Never be submitted."""


class Loft(BaseModel):
    loft: str = "north"


class Pigeon:
    """Send a pigeon."""

    name: ClassVar[str] = "pigeon"

    Options: ClassVar[type[BaseModel]] = Loft

    def send(self, event: Event, options: Any, ctx: DeliveryContext) -> None: ...


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def hooks() -> pluggy.PluginManager:
    """Nobody's hooks."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


@pytest.fixture(scope="session")
def registry() -> Registry:
    sample = Plugin("sample", "taskyard-sample", "1.0", handlers=[h.owned_by("sample") for h in (fetch, draw, anything, breaks)], notifiers=[Pigeon()])
    broken = Plugin("broken", "taskyard-broken", "0.1", state="failed", reason="ImportError: no module named 'nowhere'")
    return Registry([sample, broken], hooks())


@pytest.fixture(scope="session")
def shared_database_url(postgres_url: str, template: str) -> Iterator[str]:
    with cloned(postgres_url, template) as url:
        yield url


@pytest.fixture
def database_url(shared_database_url: str) -> Iterator[str]:
    """One for all tests of the service. Each finds it empty, and at the newest revision."""
    admin = admin_engine(shared_database_url)
    with admin.connect() as connection:
        revision = connection.execute(text(f"SELECT version_num FROM {VERSIONS}")).scalar_one()
    yield shared_database_url
    with admin.connect() as connection:
        empty(connection)
        connection.execute(text(f"UPDATE {VERSIONS} SET version_num = :revision"), {"revision": revision})


@pytest.fixture
def api_settings(database_url: str) -> Settings:
    route = Route(name="all ends", notifier="pigeon", events=("task.cancelled", "task.submitted"))
    return Settings(database=DatabaseSettings(url=SecretStr(database_url)), routes=(route,))


@pytest.fixture
async def app(api_settings: Settings, registry: Registry) -> AsyncIterator[FastAPI]:
    made = create_app(api_settings, registry)
    async with made.router.lifespan_context(made):
        yield made


def client_of(app: FastAPI) -> AsyncClient:
    """A client without a network. An error that escapes from the service reaches the test: there must be none."""
    return AsyncClient(transport=ASGITransport(app), base_url="http://test.localhost/api/v1", timeout=30)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[AsyncClient]:
    async with client_of(app) as made:
        yield made


async def submit(client: AsyncClient, type_: str = "anything", payload: Any = None, **options: Any) -> dict[str, Any]:
    answer = await client.post("/tasks", json={"type": type_, "payload": payload, **options})
    assert answer.status_code == 201, answer.text
    task: dict[str, Any] = answer.json()
    return task


def force(engine: Engine, task_id: str, status: str) -> None:
    """Bring a task into a status as if a worker had done it, with all that the table's constraints ask for."""
    with engine.begin() as connection:
        connection.execute(
            text(
                """UPDATE tasks SET status = :status, started_at = now(), fence = 1, worker_id = gen_random_uuid(), next_run_at = NULL,
                finished_at = CASE WHEN :status IN ('succeeded', 'failed', 'cancelled', 'expired') THEN now() END WHERE id = :id"""
            ),
            {"id": task_id, "status": status},
        )


def placeless(task: dict[str, Any]) -> dict[str, Any]:
    """A task without what only the look at one task shows: its place in line."""
    return task | {"position": None, "estimated_start": None}
