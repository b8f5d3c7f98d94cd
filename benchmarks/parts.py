"""Real parts to measure on: PostgreSQL with RabbitMQ where they answer, and the embedded PostgreSQL with Redis."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from kombu import Connection
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from benchmarks.processes import until
from taskyard.children import NOBODY, as_nobody, dying_with_us, is_root
from taskyard.embedded import start_broker, start_postgres
from taskyard.sessions import PLANNING


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


@contextmanager
def counting(parts: Parts, folder: Path) -> Iterator[Parts]:
    """The same broker, and a PostgreSQL of the run's own that counts statements; the same parts where none is installed.

    pg_stat_statements has to be there when the server starts, and the server that is measured otherwise may be others' too.
    """
    programs = next((path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True)), None)
    if programs is None:
        yield parts
        return
    data, sockets = folder / "counting", Path(tempfile.mkdtemp(prefix="ty-pg-"))
    data.mkdir(parents=True)
    if is_root():
        for path in (data, sockets):
            shutil.chown(path, NOBODY, NOBODY)
    settings = {"listen_addresses": "", "unix_socket_directories": str(sockets), "shared_preload_libraries": "pg_stat_statements", "jit": "off"}
    _programmed([str(programs / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]).wait()
    server = _programmed([str(programs / "postgres"), "-D", str(data), *(part for name, value in settings.items() for part in ("-c", f"{name}={value}"))])
    try:
        url = f"postgresql://postgres@/postgres?host={sockets}"
        until(lambda: _connects(url), "a PostgreSQL that counts statements")
        yield replace(parts, postgres=url)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
        shutil.rmtree(sockets, ignore_errors=True)


def _programmed(command: list[str]) -> subprocess.Popen[bytes]:
    wrapped = as_nobody(command, signal.SIGINT) if is_root() else dying_with_us(command, signal.SIGINT)
    return subprocess.Popen(wrapped, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")


def _connects(url: str) -> bool:
    engine = engine_of(url)
    try:
        engine.connect().close()
    except OperationalError:
        return False
    finally:
        engine.dispose()
    return True


def engine_of(url: str, *, autocommit: bool = False) -> Engine:
    """An engine for a URL of any driver, for which PostgreSQL plans as it does for the roles."""
    made = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"), connect_args={"options": " ".join(f"-c {name}={value}" for name, value in PLANNING.items())}
    )
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
