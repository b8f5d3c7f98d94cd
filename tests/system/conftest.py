from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from taskyard_migrations.runner import upgrade
from tests import ground as grounds
from tests.ground import TEMPLATE, Broker, EmbeddedServer, Ground
from tests.stack import QUICK, Stack, cloned


@pytest.fixture(scope="session")
def private_postgres(short_tmp: Path) -> Iterator[EmbeddedServer]:
    """A PostgreSQL that may be killed, with a migrated database, TEMPLATE, that tests clone."""
    server = grounds.private_postgres(short_tmp / f"gp-{os.getpid()}")
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}")
    upgrade(make_url(server.url).set(database=TEMPLATE).render_as_string(hide_password=False))
    yield server
    server.close()


@pytest.fixture(scope="session", params=grounds.kinds())
def ground_kind(request: pytest.FixtureRequest) -> str:
    """Which pair to be hard on."""
    return str(request.param)


@pytest.fixture(scope="session")
def private_broker(ground_kind: str, short_tmp: Path) -> Iterator[Broker]:
    """A broker that may be killed."""
    server = grounds.private_broker(ground_kind, short_tmp / f"gb-{ground_kind}-{os.getpid()}")
    yield server
    server.close()


@pytest.fixture(scope="module")
def ground(ground_kind: str, private_postgres: EmbeddedServer, private_broker: Broker) -> Iterator[Ground]:
    """A private pair, and proxies of this module's own."""
    made = Ground(ground_kind, private_postgres, private_broker)
    made.heal()
    yield made
    made.heal()
    made.close()


@pytest.fixture
def healed(ground: Ground) -> Iterator[Ground]:
    """The ground, well again after the test."""
    yield ground
    ground.heal()


def _stack(ground: Ground, folder: Path) -> Iterator[Stack]:
    """Its roles reach both servers by way of the proxies, and the tests by themselves."""
    with cloned(ground.postgres.url, TEMPLATE) as database_url:
        made = Stack(database_url, ground.broker.url, folder, TASKYARD_WORKER__PROCESSES="1", TASKYARD_WORKER__STOP_GRACE="1")
        made.env["DATABASE_URL"] = ground.to_postgres.url_of(database_url)
        made.env["CELERY_BROKER_URL"] = ground.to_broker.url_of(ground.broker.url)
        yield made
        ground.heal()
        made.close()


@pytest.fixture
def hard(healed: Ground, tmp_path: Path) -> Iterator[Stack]:
    """A stack on the private pair, with nothing started, of this test's own."""
    yield from _stack(healed, tmp_path)


@pytest.fixture(scope="module")
def shared_hard(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A dispatcher and a worker on the private pair, for the tests of a module: a start costs more than most faults."""
    for made in _stack(ground, tmp_path_factory.mktemp("hard")):
        made.env.update(QUICK)
        made.start("dispatcher")
        made.start("worker")
        yield made.ready()
