"""Real parts for every test: an embedded PostgreSQL and Redis everywhere, and the servers on their default ports too.

A test that takes ``database_url`` runs once for each PostgreSQL, and one that takes ``broker_url`` once for each broker.
TASKYARD_TEST_SERVERS says whether the servers at 127.0.0.1:5432 and :5672 take part: by default where they answer,
``required`` (as in CI) makes it an error if one does not answer, and ``none`` leaves them out.

``make test`` runs what is not marked ``slow``, on the embedded parts alone; ``make test-rest`` runs the other tests
(``--rest``), and ``make test-all`` all of them.
"""

from __future__ import annotations

import os
import socket
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, make_url

from taskyard.settings import BrokerSettings, DatabaseSettings, Settings
from tests.databases import cloned
from tests.servers import REQUIRED, wanted

SERVER_POSTGRES = "postgresql://postgres@127.0.0.1:5432/postgres"
SERVER_RABBITMQ = "amqp://guest:guest@127.0.0.1:5672//"


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _kinds(port: int) -> list[str]:
    return ["embedded", "server"] if wanted() and (REQUIRED or _answers(port)) else ["embedded"]


#: What takes longest comes first: files are dealt out whole, and the last ones should be short.
LONGEST = (
    "test_chaos.py",
    "test_cli_service.py",
    "test_generated_clients.py",
    "test_reload.py",
    "test_schemathesis.py",
    "test_workers.py",
    "test_harness.py",
    "test_refused_writes.py",
    "test_access.py",
    "test_neighbours.py",
    "test_up.py",
    "test_silent_stops.py",
    "test_policy.py",
    "test_cli_keys.py",
    "test_names.py",
    "test_outages.py",
    "test_oddities.py",
    "test_promises.py",
    "test_machine.py",
    "test_runs.py",
    "test_bad_notifiers.py",
    "test_role_logs.py",
    "test_broker_limits.py",
    "test_travelling_together.py",
    "test_graceful_stop.py",
    "test_claims_of_sleepers.py",
    "test_metrics.py",
    "test_notifications.py",
    "test_ground.py",
)


#: Files that `make test` leaves out: they run whole systems through outages, or try thousands of sequences. A single test is marked ``slow``.
SLOW = {
    "test_access.py",
    "test_api_outages.py",
    "test_attacks.py",
    "test_bad_notifiers.py",
    "test_bad_receivers.py",
    "test_batches.py",
    "test_broken_plugins.py",
    "test_broker_limits.py",
    "test_causes_in_logs.py",
    "test_chaos.py",
    "test_children.py",
    "test_claims_of_sleepers.py",
    "test_cli_deliveries.py",
    "test_cli_keys.py",
    "test_cli_service.py",
    "test_closed_loop.py",
    "test_compose_runs.py",
    "test_crowds.py",
    "test_deaths.py",
    "test_direct_hints.py",
    "test_doctor.py",
    "test_downgrade_under_roles.py",
    "test_first_plugin.py",
    "test_forks.py",
    "test_garbled.py",
    "test_generated_client.py",
    "test_generated_clients.py",
    "test_graceful_stop.py",
    "test_ground.py",
    "test_harness.py",
    "test_isolation.py",
    "test_locked_rows.py",
    "test_lost_track.py",
    "test_machine.py",
    "test_machine_finds.py",
    "test_names.py",
    "test_neighbours.py",
    "test_notifications.py",
    "test_oddities.py",
    "test_outages.py",
    "test_patterns.py",
    "test_patterns_page.py",
    "test_pgbouncer.py",
    "test_policy.py",
    "test_private_certificates.py",
    "test_promises.py",
    "test_quiet_nights.py",
    "test_redelivery.py",
    "test_refused_by_the_broker.py",
    "test_refused_writes.py",
    "test_reload.py",
    "test_reload_watch.py",
    "test_remote_control.py",
    "test_resources.py",
    "test_role_logs.py",
    "test_rolling_upgrade.py",
    "test_schema_change.py",
    "test_schemathesis.py",
    "test_silent_stops.py",
    "test_stops.py",
    "test_strict_types.py",
    "test_stuck_workers.py",
    "test_testing.py",
    "test_thousand_races.py",
    "test_travelling_together.py",
    "test_up.py",
    "test_version_change.py",
    "test_web_drain.py",
    "test_workers.py",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rest", action="store_true", help="run only the tests that `make test` leaves out")


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.name in SLOW:
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--rest"):
        quick = [item for item in items if _is_quick(item)]
        config.hook.pytest_deselected(items=quick)
        items[:] = [item for item in items if not _is_quick(item)]
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def _is_quick(item: pytest.Item) -> bool:
    """Does `make test` run this test, with these parameters or with others that prove the same?"""
    if item.get_closest_marker("slow"):
        return False
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    on_servers = any(parameters.get(kind) in ("server", "rabbitmq") for kind in ("postgres_kind", "broker_kind", "ground_kind"))
    return not on_servers or item.get_closest_marker("one_pair") is not None


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """How the run ended, for .ci/once_more.py."""
    if not hasattr(session.config, "workerinput") and (cache := getattr(session.config, "cache", None)):
        cache.set("taskyard/status", int(exitstatus))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = set(metafunc.fixturenames)
    postgres, brokers = _kinds(5432), _kinds(5672)
    # What does not depend on which servers there are is tried on one kind: on those that production has, where they answer.
    first = -1 if metafunc.definition.get_closest_marker("one_pair") else 0
    if {"postgres_kind", "broker_kind"} <= names:
        # Whole systems run on two pairs, not on four: embedded with embedded, server with server.
        pairs = sorted({(kind, kind) for kind in postgres} & {(kind, kind) for kind in brokers})[first:]
        metafunc.parametrize(("postgres_kind", "broker_kind"), pairs, scope="session", ids=[pair[0] for pair in pairs])
        return
    if "postgres_kind" in metafunc.fixturenames:
        metafunc.parametrize("postgres_kind", postgres[first:], scope="session", ids=lambda k: f"pg-{k}")
    if "broker_kind" in metafunc.fixturenames:
        metafunc.parametrize("broker_kind", brokers[first:], scope="session", ids=lambda k: f"mq-{k}")


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A folder whose path is short enough for unix sockets (107 bytes)."""
    with tempfile.TemporaryDirectory(prefix="ty-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres_url(postgres_kind: str, short_tmp: Path) -> Iterator[str]:
    """A PostgreSQL whose user may create databases."""
    if postgres_kind == "server":
        yield SERVER_POSTGRES
        return
    from taskyard.embedded import start_postgres

    server = start_postgres(short_tmp / f"pg-{os.getpid()}")
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def template(postgres_url: str) -> Iterator[str]:
    """The name of a migrated database that each test clones."""
    from taskyard_migrations.runner import upgrade

    with cloned(postgres_url) as url:
        upgrade(url)
        yield str(make_url(url).database)


@pytest.fixture
def database_url(postgres_url: str, template: str) -> Iterator[str]:
    """A fresh migrated database of this test's own."""
    with cloned(postgres_url, template) as url:
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_engine(make_url(database_url).set(drivername="postgresql+psycopg"))
    yield made
    made.dispose()


@pytest.fixture(scope="session")
def broker_url(broker_kind: str, short_tmp: Path) -> Iterator[str]:
    """A Celery broker URL. Tests share the broker: give each its own ``prefix``."""
    if broker_kind == "server":
        yield SERVER_RABBITMQ
        return
    from taskyard.embedded import start_broker

    server = start_broker(short_tmp / f"mq-{os.getpid()}")
    yield server.url
    server.stop()


@pytest.fixture
def settings(database_url: str, broker_url: str) -> Settings:
    """Settings for one test's whole system: its own database, its own queues on the shared broker."""
    return Settings(
        database=DatabaseSettings(url=SecretStr(database_url)),
        broker=BrokerSettings(url=SecretStr(broker_url), prefix=f"t{uuid.uuid4().hex[:10]}"),
    )
