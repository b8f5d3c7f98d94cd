"""One real child process, forked by a real zygote, without a worker: tests give it jobs and read what it sends."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskyard import clock
from taskyard_worker import runner, wire
from tests.stack import PATIENCE

CHILDBED = Path(__file__).parent / "childbed"


@dataclass
class Ended:
    """What a child has sent of one job."""

    report: dict[str, Any]
    progress: list[dict[str, Any]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def result(self) -> Any:
        """The result of a success."""
        assert self.report["outcome"] == "succeeded", self.report
        return json.loads(self.report["result"])

    @property
    def said(self) -> list[str]:
        """The messages of its kept lines."""
        return [line["message"] for line in self.lines]


class OneChild:
    """A child as its engine sees it: jobs go in, messages come out."""

    def __init__(self, channel: socket.socket, keys: Iterator[int], log: Path) -> None:
        channel.settimeout(PATIENCE)
        self.channel = channel
        self._keys = keys
        self._log = log
        self.ended: dict[int, Ended] = {}
        self.strays: list[dict[str, Any]] = []
        self._open: dict[int, Ended] = {}

    def start(self, type_: str, payload: Any = None, *, namespace: str = "default", **more: Any) -> int:
        """Give it a job, and get the job's key. ``more`` are further fields of the job."""
        return self._send(self._job(type_, payload, namespace) | more)

    def start_batch(self, type_: str, payloads: Sequence[Any], **more: Any) -> int:
        """Give it the tasks of a batch handler, and get the job's key."""
        jobs = [self._job(type_, payload, "default") for payload in payloads]
        return self._send({"kind": "batch", "type": type_, "start_by": jobs[0]["start_by"], "jobs": jobs} | more)

    def _send(self, job: dict[str, Any]) -> int:
        job["key"] = key = next(self._keys)
        self._open[key] = Ended({})
        self.tell(run=[job])
        return key

    def _job(self, type_: str, payload: Any, namespace: str) -> dict[str, Any]:
        # As a claim's row; what it has no value for here is empty.
        row: Any = defaultdict(lambda: None, id=uuid.uuid4(), type=type_, namespace=namespace, payload=json.dumps({} if payload is None else payload))
        row |= {"attempt": 1, "fence": 1, "max_attempts": 1, "tags": [], "metadata": "{}", "started": time.time(), "timeout": 600.0}
        return runner._job(row, 0, clock.now() + 600)

    def wait(self, key: int) -> Ended:
        """All that it sent of a job, once that has ended."""
        while key not in self.ended:
            self.hear()
        return self.ended[key]

    def tell(self, **message: Any) -> None:
        """Send it a message that is no job."""
        self.channel.sendall(wire.pack(message))

    def hear_progress(self, key: int, message: str) -> None:
        """Wait until a job has said how far it is."""
        while all(said["message"] != message for said in self._open[key].progress):
            self.hear()

    def run(self, type_: str, payload: Any = None, *, namespace: str = "default") -> Ended:
        """Run one job."""
        return self.wait(self.start(type_, payload, namespace=namespace))

    def do(self, what: str, with_: Any = None) -> Ended:
        """Have the childbed's handler do something."""
        return self.run("c.do", {"what": what, "with_": with_})

    def hear(self) -> None:
        """Take in one message."""
        message = wire.receive(self.channel)
        assert message is not None, f"the child has ended:\n{self.log()}"
        of = self._open.get(message.get("key", 0))
        if of is None:
            self.strays.append(message)
        elif "progress" in message:
            of.progress.append(message["progress"])
        elif "lines" in message:
            of.lines += map(json.loads, message["lines"])
        elif "report" in message:
            of.report = message["report"]
            self.ended[message["key"]] = self._open.pop(message["key"])

    def log(self) -> str:
        """What the zygote and all its children have written."""
        return self._log.read_text(errors="replace")


@dataclass
class Zygote:
    """A running zygote."""

    channel: socket.socket
    log: Path
    keys: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    children: list[OneChild] = field(default_factory=list)

    def fork(self, kind: str = "sync") -> OneChild:
        """A new child."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.channel, [b"a" if kind == "async" else b"s"], [theirs.fileno()])
        self.children.append(OneChild(ours, self.keys, self.log))
        return self.children[-1]


@contextmanager
def zygote(folder: Path, plugins: Path = CHILDBED, only: str = "childbed", **environment: str) -> Iterator[Zygote]:
    """A zygote that has loaded one plugin from a folder; its output goes to a file."""
    ours, theirs = socket.socketpair()
    log = folder / "zygote.log"
    env = os.environ | {"PYTHONPATH": str(plugins), "TASKYARD_PLUGINS__ONLY": only, "TASKYARD_LOG__FORMAT": "json"} | environment
    with log.open("ab") as out:
        command = [sys.executable, "-P", "-m", "taskyard_worker.zygote", str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, cwd=folder, stdout=out, stderr=out, process_group=0)
    theirs.close()
    made = Zygote(ours, log)
    try:
        ours.settimeout(PATIENCE)
        assert wire.receive(ours) == {"ready": True}, log.read_text()
        yield made
    finally:
        for child in made.children:
            child.channel.close()
        ours.close()
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
