"""The worker's Celery app."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from celery import Celery
from celery.signals import celeryd_init, setup_logging, worker_ready, worker_shutting_down

from taskyard import failpoints, logs
from taskyard.collector import spare_what_is_loaded
from taskyard.database import postgres_url
from taskyard.database_check import check_database
from taskyard.dispatch.app import broker_url, create_celery
from taskyard.dispatch.broker_tls import check_certificate
from taskyard.plugins import Registry, load_plugins_for
from taskyard.settings import Settings
from taskyard_worker import remote
from taskyard_worker.steps import AsyncLanes, Deliveries, HintQueues

log = structlog.get_logger(__name__)


def served_queues(settings: Settings, registry: Registry) -> list[str]:
    """The queues a worker serves: those that are configured, or else ``default`` and all that its handlers name."""
    if settings.worker.queues is not None:
        return list(settings.worker.queues)
    return sorted({"default", *(handler.queue for handler in registry.handlers.values())})


def create_app(settings: Settings) -> Celery:
    """A Celery app whose workers run Taskyard's pool.

    Raises:
        ConfigurationError: no database or broker is configured, or a plugin's configuration is wrong.
    """
    failpoints.arm()
    postgres_url(settings.database)
    registry = load_plugins_for(settings)
    check_database(settings.database)
    check_certificate(settings.broker, broker_url(settings.broker))
    app = create_celery(settings, served_queues(settings, registry))
    app.taskyard_registry = registry
    app.amqp_cls = HintQueues
    app.steps["consumer"].update({AsyncLanes, Deliveries})
    remote.register()

    def configure_logs(**_: Any) -> None:
        logs.configure_role(settings)
        # It has a line for each message; the engine has one for each task.
        logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)

    def be_quiet(instance: Any = None, **_: Any) -> None:
        """Celery warns, prints its banner and tells what it does on a signal before, or around, all logging."""
        configure_logs()
        instance.quiet = True
        # Not with `sys.__stdout__ = None`: it is declared final. Celery asks whether it is there.
        setattr(sys, "__stdout__", None)  # noqa: B010

    def tell_of_stop(sig: str, how: str, **_: Any) -> None:
        log.info("worker.stopping", signal=sig, how=how.lower())

    # With a receiver of this signal Celery leaves logging alone.
    setup_logging.connect(configure_logs, weak=False)
    worker_shutting_down.connect(tell_of_stop, weak=False)
    worker_ready.connect(lambda **_: spare_what_is_loaded(), weak=False)
    if settings.log.format == "json":
        celeryd_init.connect(be_quiet, weak=False)
    return app
