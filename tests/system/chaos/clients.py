"""Clients that submit over HTTP and don't give up, and people who change their minds."""

from __future__ import annotations

import heapq
import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from .plan import Plan, Submission
from .records import Record

#: Seconds until a request that was not answered counts as unanswered, and that one asks a service to wait for a task's end.
PATIENCE, WAIT = 5.0, 3
#: What a task's answer says while it lives.
LIVE = ("scheduled", "pending", "queued", "running", "held")
#: The part of all submissions that may be made before the faults that come earlier are over, and what part of the pace is left then.
AHEAD = 0.05
TRICKLE = 0.35
SAVED = 0.2


class Pace:
    """When the next task is submitted: evenly over time, and slower while the faults that belong to this part of the submissions are behind.

    It never stops for them: a failpoint is reached only by work.
    """

    def __init__(self, plan: Plan) -> None:
        self._rate = plan.rate
        self._tasks = plan.tasks
        self._lock = threading.Lock()
        self._allowed = 0.0
        self._at = time.monotonic()
        self._waiting_for = dict.fromkeys(plan.lanes, 0.0)
        self.answered = 0
        self.behind = False
        """The system has more to do than it should be given."""
        self.paused = False
        """A fault needs silence for a moment."""

    def begin(self) -> None:
        """The time runs from now."""
        self._at = time.monotonic()

    def answer(self) -> None:
        """Another submission was answered."""
        with self._lock:
            self.answered += 1

    @property
    def progress(self) -> float:
        """The part of all submissions that was answered."""
        return self.answered / self._tasks

    def comes(self, lane: str, at: float) -> None:
        """A lane's next fault is for this part of the submissions."""
        with self._lock:
            self._waiting_for[lane] = at

    def allows(self) -> bool:
        """May one more be sent now?"""
        with self._lock:
            now = time.monotonic()
            share = self._share()
            # What could not be sent in time, because nobody answered, is not made up for all at once.
            self._allowed = min(self._allowed + (now - self._at) * self._rate * share, 10 + self._rate / 5)
            self._at = now
            if self.behind or self.paused or self._allowed < 1:
                return False
            self._allowed -= 1
            return True

    def _share(self) -> float:
        """What part of the pace is allowed. Ahead of the faults it is less, and the less the fewer tasks are left: some are for the last fault."""
        if self.progress <= min(self._waiting_for.values(), default=1.0) + AHEAD:
            return 1.0
        return TRICKLE * min(1.0, (1.0 - self.progress) / SAVED)


class Client(threading.Thread):
    """One of several: submits its share of the plan and does what people do to those tasks."""

    def __init__(self, number: int, plan: Plan, pace: Pace, ports: Sequence[int], record: Record) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self._number = number
        self._plan = plan
        self._pace = pace
        self._ports = list(ports)
        self._record = record
        self._connections: dict[int, http.client.HTTPConnection] = {}
        self._acts: list[tuple[float, str, str]] = []
        self.failure: BaseException | None = None
        self.stopping = threading.Event()

    def run(self) -> None:
        try:
            for submission in self._plan.submissions(self._number):
                self._act_until(self._pace.allows)
                self._submit(submission)
            self._act_until(lambda: not self._acts)
        except BaseException as error:
            self.failure = error
        finally:
            for connection in self._connections.values():
                connection.close()

    def _act_until(self, condition: Callable[[], bool]) -> None:
        """Do what people do in its time, until a condition holds."""
        while True:
            while self._acts and self._acts[0][0] <= time.monotonic():
                _, verb, id_ = heapq.heappop(self._acts)
                self._act(verb, id_)
            if condition():
                return
            if self.stopping.wait(0.01):
                raise InterruptedError("the run was ended while clients still had work")

    def _submit(self, submission: Submission) -> None:
        if submission.safely:
            # All or none, which takes a transaction, and as often as it needs: one task all the same.
            body = json.dumps({"tasks": [{**submission.body, "unique_key": submission.key}]}).encode()
            status, text = self._until_answered("POST", "/api/v1/tasks/batch", body, submission.key, {"Idempotency-Key": f'"{submission.key}"'})
            made = json.loads(text)["items"][0] if status in (200, 201) else {}
        else:
            status, text = self._until_answered("POST", "/api/v1/tasks", json.dumps(submission.body).encode(), submission.key)
            made = json.loads(text) if status == 201 else {}
        id_ = made.get("id", f"refused-with-{status}")
        self._record.write("answered", submission.key, id_)
        self._pace.answer()
        if self._plan.closed_loop:
            self._await_end(id_)
        for delay, verb in submission.acts:
            heapq.heappush(self._acts, (time.monotonic() + delay, verb, id_))

    def _await_end(self, id_: str) -> None:
        """Ask for a task with ``Prefer: wait`` until it has ended."""
        status = "pending"
        while status in LIVE:
            _, text = self._until_answered("GET", f"/api/v1/tasks/{id_}", b"", id_, {"Prefer": f"wait={WAIT}"})
            status = json.loads(text)["status"]

    def _act(self, verb: str, id_: str) -> None:
        status, _ = self._until_answered("POST", f"/api/v1/tasks/{id_}/{verb}", b"", id_)
        self._record.write("acted", id_, verb, status)

    def _until_answered(self, method: str, path: str, body: bytes, key: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Ask one service after the other until one answers, and can."""
        while True:
            try:
                status, text = self._ask(method, path, body, headers or {})
            except (OSError, http.client.HTTPException) as error:
                # It may have been done all the same: nobody knows.
                self._record.write("unanswered", key, type(error).__name__)
            else:
                if status < 500:
                    return status, text
                self._record.write("unanswered", key, status)
            self._connections.pop(self._ports[-1]).close()
            if self.stopping.wait(0.05):
                raise InterruptedError("the run was ended while a client had no answer")

    def _ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        port = self._ports.pop(0)
        self._ports.append(port)
        if port not in self._connections:
            self._connections[port] = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection = self._connections[port]
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()


def clients_of(plan: Plan, pace: Pace, ports: Sequence[int], record: Record) -> list[Client]:
    """A plan's clients, each of which asks another service first."""
    turned = [[*ports[first:], *ports[:first]] for first in range(len(ports))]
    return [Client(number, plan, pace, turned[number % len(ports)], record) for number in range(plan.clients)]
