"""`taskyard dispatcher`."""

from __future__ import annotations

import signal

from taskyard import failpoints, logs
from taskyard.collector import spare_what_is_loaded
from taskyard.database import sync_engine
from taskyard.database_check import check_database
from taskyard.dispatch.app import broker_url, create_celery
from taskyard.dispatch.broker_tls import check_certificate
from taskyard.dispatch.dispatcher import Dispatcher
from taskyard.dispatch.publisher import Publisher
from taskyard.hangs import bound_waits
from taskyard.metrics import Tally
from taskyard.plugins import load_plugins_for
from taskyard.settings import load_settings
from taskyard.stopping import Step, StopGuard, dispatcher_budget


def dispatcher() -> None:
    """Move ready tasks from the database to the broker. Any number may run at once."""
    settings = load_settings()
    logs.configure_role(settings)
    failpoints.arm()
    # The dispatcher runs no plugin, but a wrong route must stop it here, with a sentence, and not fail at each delivery.
    registry = load_plugins_for(settings)
    check_database(settings.database)
    check_certificate(settings.broker, broker_url(settings.broker))
    engine = sync_engine(settings.database, role="dispatcher", pool_size=2)
    bound_waits(engine, settings.database)
    loop = Dispatcher(settings, engine, Publisher(create_celery(settings), settings.broker), Tally.of(registry), registry.states(), registry.owners())
    guard = StopGuard("dispatcher", dispatcher_budget(settings), Step("the dispatch that was under way"))

    def stop(*_: object) -> None:
        guard.begin()
        loop.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    spare_what_is_loaded()
    try:
        loop.run()
    finally:
        engine.dispose()
