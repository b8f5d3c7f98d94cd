"""Real parts to measure on: PostgreSQL with RabbitMQ where they answer, and the embedded PostgreSQL with Redis."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kombu import Connection
from sqlalchemy import Engine, create_engine, make_url, text

from taskyard.embedded import start_broker, start_postgres


@dataclass(frozen=True)
class Parts:
    """A PostgreSQL whose user may create databases, and a broker; ``name`` is the broker's, as the report says it."""

    name: str
    postgres: str
    broker: str


def answers(url: str, port: int) -> bool:
    """Does something accept connections at a URL's address?"""
    parts = urlsplit(url)
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((parts.hostname or "127.0.0.1", parts.port or port)) == 0


@contextmanager
def embedded(folder: Path) -> Iterator[Parts]:
    """Embedded servers of the run's own."""
    postgres = start_postgres(folder / "servers")
    try:
        broker = start_broker(folder / "servers")
        try:
            yield Parts("embedded", postgres.url, broker.url)
        finally:
            broker.stop()
    finally:
        postgres.stop()


def engine_of(url: str, *, autocommit: bool = False) -> Engine:
    """An engine for a URL of any driver."""
    made = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    return made.execution_options(isolation_level="AUTOCOMMIT") if autocommit else made


@contextmanager
def scratch_database(postgres: str) -> Iterator[str]:
    """An empty database that is dropped afterwards."""
    name = f"ty_bench_{uuid.uuid4().hex[:12]}"
    admin = engine_of(postgres, autocommit=True)
    with admin.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    try:
        yield make_url(postgres).set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
        admin.dispose()


def sweep(broker: str, queues: list[str], exchange: str) -> None:
    """Delete what a side declared on a broker that others use too."""
    if not broker.startswith("amqp"):
        return
    with Connection(broker) as connection:
        for queue in queues:
            with connection.channel() as channel:
                channel.queue_delete(queue)
        with connection.channel() as channel:
            channel.exchange_delete(exchange)
