"""What tests leave on a shared broker, and its end.

A quorum queue keeps files open for as long as it is there. A RabbitMQ that gathers the queues of whole test runs comes to the
end of its file descriptors, and then takes no connection any more.
"""

from __future__ import annotations

from collections.abc import Iterable

from kombu import Connection

from taskyard.plugins import load_plugins


def forget(broker_url: str, prefix: str, queues: Iterable[str] = ()) -> None:
    """Delete the exchange and the queues of one prefix: ``queues``, and those that installed handlers name."""
    if not broker_url.startswith("amqp"):
        return
    named = {"default", *queues, *(handler.queue for handler in load_plugins().handlers.values())}
    with Connection(broker_url) as connection, connection.channel() as channel:
        for queue in [f"{prefix}.deliveries", *(f"{prefix}.{name}.{lane}" for name in sorted(named) for lane in ("sync", "async"))]:
            channel.queue_delete(queue)
        channel.exchange_delete(prefix)
