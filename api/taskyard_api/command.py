"""`taskyard serve`: the REST service as a process."""

from __future__ import annotations

import signal
import socket
from typing import Annotated

import structlog
import typer
import uvicorn
from fastapi import FastAPI

from taskyard import failpoints, logs
from taskyard.collector import spare_what_is_loaded
from taskyard.plugins import Registry, load_plugins_for
from taskyard.settings import Settings, is_loopback, load_settings
from taskyard_api.app import create_app
from taskyard_api.protocol import BoundedProtocol

log = structlog.get_logger(__name__)

#: Seconds that requests on their way get at shutdown.
GRACE = 10


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: api.host, 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one. Default: api.port, 8000.")] = None,
) -> None:
    """Serve the REST API."""
    settings = load_settings(api={"host": host, "port": port})
    logs.configure_role(settings)
    failpoints.arm()
    # Once it has stopped, uvicorn raises the signal that it was stopped by again.
    signal.signal(signal.SIGTERM, _stopped)
    signal.signal(signal.SIGINT, _stopped)
    made = server(settings)
    # Its requests may be large, and plugins' models read them: what they leave is looked for as often as Python thinks fit.
    spare_what_is_loaded(young=None)
    made.run()


def _stopped(_signal: int, _frame: object) -> None:
    raise SystemExit(0)


def server(settings: Settings) -> uvicorn.Server:
    """A server that is ready to run, and stops cleanly on SIGINT and SIGTERM."""
    registry = load_plugins_for(settings)
    warn_if_open(settings, registry)
    return server_of(create_app(settings, registry), settings.api.host, settings.api.port)


def warn_if_open(settings: Settings, registry: Registry) -> None:
    """Say in the log what a service that asks for no keys lets everybody do by its plugins: on loopback, all users of the machine."""
    if settings.asks_for_keys:
        return
    who = "every user of this machine" if is_loopback(settings.api.host) else "everybody who reaches this address"
    for plugin in registry.plugins:
        if plugin.exposes:
            means = f"{who} may submit tasks, and {plugin.exposes}"
            log.warning("auth.open", plugin=plugin.name, means=means, instead="TASKYARD_AUTH__MODE=keys asks for keys")


def server_of(app: FastAPI, host: str = "127.0.0.1", port: int = 0) -> uvicorn.Server:
    """A server for an application of ours."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=BoundedProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """Ends live streams and waits first: a stop would wait for them until its grace is over."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        if isinstance(app, FastAPI) and (service := getattr(app.state, "service", None)):
            await service.feed.close()
            await service.waits.close()
        await super().shutdown(sockets)
