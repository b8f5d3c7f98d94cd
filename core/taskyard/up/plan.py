"""What `taskyard up` will start, decided before anything is."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from taskyard.errors import ConfigurationError
from taskyard.network import own_url
from taskyard.pythons import python
from taskyard.settings import Settings, is_loopback


@dataclass(frozen=True)
class Plan:
    """Where to listen, which parts to embed, which roles to run."""

    host: str
    port: int
    data_dir: Path
    embed_postgres: bool
    embed_broker: bool
    workers: int
    json_logs: bool
    asks_for_keys: bool

    @property
    def url(self) -> str:
        """The service's address, for a program on this machine."""
        return own_url(self.host, self.port)

    def roles(self) -> dict[str, list[str]]:
        """The commands of the roles by name, in the order in which they are stopped."""
        workers = ["worker"] if self.workers == 1 else [f"worker-{number}" for number in range(1, self.workers + 1)]
        web = taskyard_command("serve", "--host", self.host, "--port", str(self.port))
        return {"web": web, "dispatcher": taskyard_command("dispatcher")} | {name: taskyard_command("worker") for name in workers}


def taskyard_command(*arguments: str) -> list[str]:
    """The command that a person would type, in this Python."""
    return python("-m", "taskyard", *arguments)


def make_plan(settings: Settings, *, data_dir: Path, workers: int) -> Plan:
    """Check what can be checked before anything is started.

    Raises:
        ConfigurationError: the address is not allowed, or taken.
    """
    host = settings.api.host
    embed_postgres, embed_broker = settings.database.url is None, settings.broker.url is None
    _refuse_to_expose(settings, embedded=embed_postgres or embed_broker)
    return Plan(
        host=host,
        port=free_port(host, settings.api.port),
        data_dir=data_dir,
        embed_postgres=embed_postgres,
        embed_broker=embed_broker,
        workers=workers,
        json_logs=settings.log.format == "json",
        asks_for_keys=settings.asks_for_keys,
    )


def child_environment(environment: Mapping[str, str], urls: Mapping[str, str]) -> dict[str, str]:
    """What the roles inherit: ours, and the addresses of the embedded parts. No load balancer has to notice a stop, unless ours says so."""
    return {"TASKYARD_API__DRAIN_DELAY": "0", **environment, **urls, "PYTHONUNBUFFERED": "1"}


def free_port(host: str, port: int) -> int:
    """The port, after a look whether it can be had; for 0 a free one.

    Raises:
        ConfigurationError: another program has it, or the host is not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ConfigurationError(f"Can't listen on {host} port {port}: {reason}. Choose another with --port; --port 0 takes a free one.") from error


def _refuse_to_expose(settings: Settings, *, embedded: bool) -> None:
    host = settings.api.host
    if embedded and not is_loopback(host):
        raise ConfigurationError(
            f"--host {host}: the embedded PostgreSQL and broker are for this machine alone, so `taskyard up` listens on loopback (127.0.0.1) only. "
            "Set DATABASE_URL and CELERY_BROKER_URL to serve others."
        )
