"""The Celery app: core's only Celery import, with every setting set on purpose."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from celery import Celery
from kombu import Connection, Exchange, Queue

from taskyard.dispatch.broker_tls import tls_options
from taskyard.errors import ConfigurationError
from taskyard.records import LANES
from taskyard.settings import BrokerSettings, Settings

RUN: Final = "taskyard.run"
DELIVER: Final = "taskyard.deliver"
#: Seconds. A worker finds out that its connection is dead after two of them; Celery's 120 would leave it deaf for minutes.
HEARTBEAT: Final = 20.0


def broker_queue(settings: BrokerSettings, queue: str, lane: str) -> Queue:
    """The broker's queue for one lane of a queue. Its alias is the queue's own name, for ``celery worker -Q``."""
    name = f"{settings.prefix}.{queue}.{lane}"
    return _durable(settings, name, alias=queue if lane == "sync" else None)


def delivery_queue(settings: BrokerSettings) -> Queue:
    """The broker's queue for notifications. No queue's name has two parts only, so it collides with none."""
    return _durable(settings, f"{settings.prefix}.deliveries")


def parse_broker_queue(settings: BrokerSettings, name: str) -> tuple[str, str] | None:
    """The (queue, lane) that a broker queue serves, or None for any other name."""
    queue, _, lane = name.removeprefix(f"{settings.prefix}.").rpartition(".")
    return (queue, lane) if queue and lane in LANES and name.startswith(f"{settings.prefix}.") else None


def _durable(settings: BrokerSettings, name: str, alias: str | None = None) -> Queue:
    arguments = {"x-queue-type": "quorum"} if is_amqp(settings) else {}
    exchange = Exchange(settings.prefix, type="direct", durable=True)
    return Queue(name, exchange, routing_key=name, durable=True, queue_arguments=arguments, alias=alias)


def broker_url(settings: BrokerSettings) -> str:
    """The broker's URL.

    Raises:
        ConfigurationError: none is set.
    """
    if settings.url is None:
        raise ConfigurationError("broker.url is not set. Set CELERY_BROKER_URL=amqp://user:password@host//, or use `taskyard up`, which brings a broker.")
    return settings.url.get_secret_value()


def check_broker_url(settings: BrokerSettings) -> None:
    """Refuse a URL that Kombu could not use; connects to nothing.

    Raises:
        ConfigurationError: none is set, or it is malformed or for an unknown transport.
    """
    url = broker_url(settings)
    try:
        if "://" not in url:
            raise ValueError
        Connection(url).get_transport_cls()
    except KeyError as error:
        raise ConfigurationError(f"broker.url: {' '.join(str(error.args[0]).split())}") from error
    except ValueError as error:
        # The error's text has parts of the URL, and may have the password.
        raise ConfigurationError("broker.url: expected a URL such as amqp://user:password@host:5672//") from error
    tls_options(settings, url)


def is_amqp(settings: BrokerSettings) -> bool:
    """Is the broker RabbitMQ?"""
    return broker_url(settings).split(":", 1)[0] in ("amqp", "amqps", "pyamqp")


def create_celery(settings: Settings, queues: Iterable[str] = ()) -> Celery:
    """A Celery app for these settings. ``queues`` are the ones that a worker consumes; publishers need none."""
    app = Celery("taskyard", broker=broker_url(settings.broker), set_as_current=False, fixups=[])
    app.conf.update(_configuration(settings))
    app.conf.task_queues = [broker_queue(settings.broker, queue, "sync") for queue in queues]
    app.taskyard_settings = settings
    for name in (RUN, DELIVER):
        app.task(_not_by_celery, name=name, shared=False)
    return app


def _not_by_celery(*_: object) -> None:
    raise RuntimeError(
        "Taskyard's messages are hints for its own pool. Start workers with `taskyard worker`, or `celery -A taskyard_worker worker` without -P."
    )


def _configuration(settings: Settings) -> dict[str, Any]:
    return {
        # What travels is ids: JSON only, so that a forged message can't be code.
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        # Postgres holds results. The backend is for Celery tasks of the operator's own.
        "result_backend": settings.broker.result_backend,
        "task_ignore_result": True,
        "task_create_missing_queues": False,
        "task_default_queue": f"{settings.broker.prefix}.default.sync",
        "task_default_exchange": settings.broker.prefix,
        "broker_transport_options": _transport(settings),
        "broker_use_ssl": tls_options(settings.broker, broker_url(settings.broker)),
        "broker_connection_timeout": settings.broker.confirm_timeout,
        "broker_heartbeat": HEARTBEAT,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "broker_pool_acquire_timeout": settings.broker.confirm_timeout,
        "task_acks_late": True,
        # Recovery is the reaper's, which has a cap; a redelivered poison message has none.
        "task_reject_on_worker_lost": False,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_pool": "taskyard_worker.pool:TaskPool",
        "worker_consumer": "taskyard_worker.steps:HintConsumer",
        "worker_concurrency": settings.worker.processes,
        "worker_soft_shutdown_timeout": settings.worker.stop_grace,
        # Nobody pays for events that nobody has watched: Flower asks workers for them, again and again (its enable_events).
        "worker_send_task_events": False,
        "worker_enable_remote_control": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


def _transport(settings: Settings) -> dict[str, Any]:
    if is_amqp(settings.broker):
        # Not confirm_publish: only the dispatcher's publisher waits for confirmations, and it knows for how long. A worker that sends its
        # events for Flower would wait for ever.
        return {"read_timeout": HEARTBEAT, "write_timeout": HEARTBEAT, "client_properties": {"connection_name": f"taskyard-{os.getpid()}"}}
    if (url := urlsplit(broker_url(settings.broker))).scheme == "filesystem":
        folder = unquote(url.path)
        # One folder for both directions, so that what is sent is received.
        return {"data_folder_in": folder, "data_folder_out": folder, "control_folder": f"{folder}/control", "polling_interval": 0.1}
    # Redis gives a message to a second worker after this time; that costs one claim that matches nothing.
    return {"visibility_timeout": 3600}
