"""The broker is hostile ground: whatever lies in a queue, the worker takes it away and goes on."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

from kombu import Connection, Queue
from kombu.exceptions import ChannelError
from pydantic import SecretStr

from taskyard.dispatch.app import broker_queue, delivery_queue
from taskyard.settings import BrokerSettings
from tests.stack import Stack, until

BODIES: list[str] = [
    "{",
    "null",
    "[]",
    "{}",
    '"text"',
    '[["not-a-uuid"], {}, {}]',
    "[[[1, 2]], {}, {}]",
    "[[[]], {}, {}]",
    '[[["\\u0000"]], {}, {}]',
    '{"task": "taskyard.run"}',
    '{"task": ["x"], "id": {}}',
    json.dumps([[[str(uuid4())]], {}, {}]),
]
HEADERS: list[dict[str, Any]] = [{}, {"task": "taskyard.run"}, {"task": "taskyard.run", "id": "x"}, {"task": "os.system", "id": "y"}, {"task": 7, "id": 8}]


def _depth(channel: Any, queue: Queue) -> int:
    try:
        return int(queue.bind(channel).queue_declare(passive=True).message_count)
    except ChannelError:
        # An empty list is none in Redis.
        return 0


def test_no_message_ends_a_worker_or_stays(own_stack: Stack) -> None:
    stack = own_stack
    stack.start("dispatcher")
    worker = stack.start("worker")
    stack.ready()
    settings = BrokerSettings(url=SecretStr(stack.env["CELERY_BROKER_URL"]), prefix=stack.prefix)
    queues = [broker_queue(settings, "default", "sync"), broker_queue(settings, "io", "async"), delivery_queue(settings)]
    with Connection(stack.env["CELERY_BROKER_URL"]) as connection, connection.channel() as channel:
        producer = connection.Producer()
        for queue in queues:
            for body in BODIES:
                for headers in HEADERS:
                    producer.publish(body, routing_key=queue.name, exchange="", headers=headers, content_type="application/json", content_encoding="utf-8")
            producer.publish(b"\x80\x04N.", routing_key=queue.name, exchange="", content_type="application/x-python-serialize", content_encoding="binary")
        tasks = [stack.submit("t.echo", {"word": "sync"}), stack.submit("t.aecho", {"word": "async"})]
        assert [stack.wait(task, seconds=40)["status"] for task in tasks] == ["succeeded", "succeeded"]
        until(lambda: not sum(_depth(channel, queue) for queue in queues), 20, "the end of what is garbled")
    assert worker.poll() is None
    assert "Unrecoverable" not in stack.log("worker")
