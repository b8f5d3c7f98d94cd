"""`taskyard serve`: the REST service as a process."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import time
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

import structlog
import typer
import uvicorn
from fastapi import FastAPI

from taskyard import failpoints, logs
from taskyard.collector import spare_what_is_loaded
from taskyard.database_check import check_database
from taskyard.plugins import Registry, load_plugins_for
from taskyard.settings import Settings, is_loopback, load_settings
from taskyard.stopping import WEB_GRACE, Step, StopGuard, web_budget
from taskyard_api.app import create_app
from taskyard_api.draining import Draining
from taskyard_api.protocol import BoundedProtocol

log = structlog.get_logger(__name__)


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
    try:
        made = server(settings, StopGuard("web", web_budget(settings), Step("the drain delay")))
        # Its requests may be large, and plugins' models read them: what they leave is looked for as often as Python thinks fit.
        spare_what_is_loaded(young=None)
        made.run()
    except KeyboardInterrupt:
        raise SystemExit(0) from None


def _stopped(_signal: int, _frame: object) -> None:
    # Not SystemExit, which the loading of plugins would take for a plugin's own.
    raise KeyboardInterrupt


def server(settings: Settings, guard: StopGuard | None = None) -> uvicorn.Server:
    """A server that is ready to run, and stops cleanly on SIGINT and SIGTERM. ``guard`` bounds its stop."""
    check_database(settings.database)
    registry = load_plugins_for(settings)
    warn_if_open(settings, registry)
    api = settings.api
    app = create_app(settings, registry)
    return server_of(app, api.host, api.port, trusted_proxies=api.trusted_proxies, keep_alive=api.keep_alive, drain_delay=api.drain_delay, guard=guard)


def warn_if_open(settings: Settings, registry: Registry) -> None:
    """Say in the log what a service that asks for no keys lets everybody do by its plugins: on loopback, all users of the machine."""
    if settings.asks_for_keys:
        return
    who = "every user of this machine" if is_loopback(settings.api.host) else "everybody who reaches this address"
    for plugin in registry.plugins:
        if plugin.exposes:
            means = f"{who} may submit tasks, and {plugin.exposes}"
            log.warning("auth.open", plugin=plugin.name, means=means, instead="TASKYARD_AUTH__MODE=keys asks for keys")


def server_of(
    app: FastAPI,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    trusted_proxies: Sequence[str] = (),
    keep_alive: float = 5.0,
    drain_delay: float = 0.0,
    guard: StopGuard | None = None,
) -> uvicorn.Server:
    """A server for an application of ours. ``keep_alive`` and ``drain_delay`` are in seconds. ``X-Forwarded-For`` and ``-Proto`` count where they
    come from ``trusted_proxies``, and nowhere else: uvicorn's own default believes all of this machine.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=BoundedProtocol,
        log_config=None,
        access_log=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        server_header=False,
        timeout_keep_alive=math.ceil(keep_alive),
        timeout_graceful_shutdown=round(WEB_GRACE),
    )
    return _Server(config, app.state.draining, drain_delay, guard)


class _Server(uvicorn.Server):
    """Stops in three steps. On SIGTERM it says "not ready" and serves on for ``drain_delay`` seconds; SIGINT leaves that out. Then it accepts no
    more connections, ends live streams and waits, for which a stop would wait until its grace is over, and answers what it has taken.
    """

    def __init__(self, config: uvicorn.Config, draining: Draining, drain_delay: float, guard: StopGuard | None) -> None:
        super().__init__(config)
        self._draining = draining
        self._drain_delay = drain_delay
        self._guard = guard
        self._closes_at: float | None = None
        self._told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to stop. A second SIGTERM changes nothing: who started us may pass on what our process group has got already."""
        if self._guard is not None:
            self._guard.begin()
        self._draining.begin()
        if sig != signal.SIGTERM or not self._drain_delay or self.should_exit:
            super().handle_exit(sig, frame)
        elif self._closes_at is None:
            self._closes_at = time.monotonic() + self._drain_delay
            # Raised again at the end, as uvicorn does with what it has handled.
            self._captured_signals.append(sig)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: is it time to stop?"""
        if self._draining.begun and not self._told:
            self._told = True
            log.info("web.draining", seconds=self._drain_delay if self._closes_at else 0)
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and end."""
        self._draining.begin()
        self._enter("requests on their way")
        # Take what has connected already: the kernel resets what nobody has accepted when its listener closes.
        for _ in range(3):
            await asyncio.sleep(0)
        for listening in self.servers:
            listening.close()
        app = self.config.app
        if isinstance(app, FastAPI) and (service := getattr(app.state, "service", None)):
            await service.feed.close()
            await service.waits.close()
        await super().shutdown(sockets)
        self._enter("the end of the process")

    def _enter(self, waits_for: str) -> None:
        if self._guard is not None:
            self._guard.enter(Step(waits_for))
