"""Taskiq over RabbitMQ, without a result backend: async tasks in its loop, sync ones in its threads."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import Any

from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

from benchmarks.peers.driver import serve, started

PREFIX = os.environ["BENCH_PREFIX"]
broker = AioPikaBroker(
    os.environ["BENCH_BROKER"],
    exchange=Exchange(name=PREFIX),
    task_queues=[Queue(name=PREFIX, routing_key=PREFIX)],
    dead_letter_queue=Queue(name=f"{PREFIX}.dead"),
    delay_queue=Queue(name=f"{PREFIX}.delay"),
)


@broker.task(task_name="sync")  # type: ignore[untyped-decorator]  # installed only beside the peers
def sync(number: int) -> None:
    """Do nothing, in a thread."""
    started(number)


@broker.task(task_name="async")  # type: ignore[untyped-decorator]  # installed only beside the peers
async def async_(number: int) -> None:
    """Do nothing, in the event loop."""
    started(number)


def _kiq(loop: asyncio.AbstractEventLoop, task: Any, number: int) -> object:
    return loop.run_until_complete(task.kiq(number))


if __name__ == "__main__":
    loop = asyncio.new_event_loop()
    loop.run_until_complete(broker.startup())
    serve({"sync": partial(_kiq, loop, sync), "async": partial(_kiq, loop, async_)})
