"""Dramatiq without results: it keeps no state, so it is the floor of what a task costs."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peers.driver import serve, started

PREFIX = os.environ["BENCH_PREFIX"]
ADDRESS = os.environ["BENCH_BROKER"]
if ADDRESS.startswith("amqp"):
    dramatiq.set_broker(RabbitmqBroker(url=ADDRESS.removesuffix("//") + "/%2F"))
else:
    dramatiq.set_broker(RedisBroker(url=ADDRESS.replace("redis+socket", "unix"), namespace=PREFIX))


@dramatiq.actor(queue_name=PREFIX, max_retries=0)  # type: ignore[untyped-decorator]  # installed only beside the peers
def noop(number: int) -> None:
    """Do nothing."""
    started(number)


if __name__ == "__main__":
    serve({"sync": noop.send})
