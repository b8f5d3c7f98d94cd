"""Celery as its documentation sets it up: prefork, early acknowledgement. BENCH_RESULTS, where set, is its result backend."""

from __future__ import annotations

import os

from celery import Celery
from kombu import Exchange, Queue

from benchmarks.peers.driver import serve, started

PREFIX = os.environ["BENCH_PREFIX"]
RESULTS = os.environ.get("BENCH_RESULTS")
app = Celery("bench", broker=os.environ["BENCH_BROKER"], backend=RESULTS)
app.conf.task_queues = [Queue(PREFIX, Exchange(PREFIX), routing_key=PREFIX)]
app.conf.task_default_queue = PREFIX
app.conf.task_default_exchange = PREFIX
app.conf.task_default_routing_key = PREFIX
app.conf.broker_connection_retry_on_startup = True


@app.task(name="noop", ignore_result=RESULTS is None)  # type: ignore[untyped-decorator]  # Celery has no types
def noop(number: int) -> None:
    """Do nothing."""
    started(number)


if __name__ == "__main__":
    serve({"sync": noop.delay})
