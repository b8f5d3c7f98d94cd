"""What a hint looks like as a message of Celery's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery
from kombu import Queue


def send(app: Celery, producer: Any, name: str, target: Queue, ids: Sequence[Any], task_id: str, shadow: str, **options: Any) -> None:
    """Send one message, over a producer's channel. ``task_id`` and ``shadow`` are what Flower shows; ``options`` are those of a publish."""
    app.send_task(
        name,
        args=[ids],
        task_id=task_id,
        shadow=shadow,
        argsrepr=repr(ids)[:200],
        queue=target,
        producer=producer,
        declare=[],
        retry=False,
        ignore_result=True,
        **options,
    )
