"""What a run will do, decided before anything is started: the tasks, what people do to them, and the faults. The same seed, the same plan."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from taskyard.failpoints import POINTS

ROLES = ("api-1", "api-2", "dispatcher-1", "dispatcher-2", "worker-1", "worker-2")
#: What is done to servers, to their data and to wires. One after the other, by the harness's main thread.
SERVERS = "servers"
#: Tasks for each round of all faults, and seconds over which they are submitted.
ROUND_TASKS = 50_000
ROUND_SECONDS = 70.0


@dataclass(frozen=True)
class Fault:
    """One fault: who suffers it (a role, or the servers), what it is, and after which part of the submissions it comes."""

    lane: str
    kind: str
    at: float = 0.0
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.detail or ''}".strip() + (f" ({self.lane})" if self.lane != SERVERS else "")


#: What clients do beside all faults, in a lane of its own.
CLIENTS_LANE = "clients"
#: Clients that each submit a task, wait for its end, and submit the next, beside all others: how many, and how many tasks of each.
LOOP = "eight clients in a closed loop"
LOOPERS, LOOP_TASKS = 8, 10
#: Clients of a run.
CLIENTS = 16
#: Once in each round. Those that only RabbitMQ can suffer are marked.
SERVER_FAULTS = (
    "broker restart",
    "broker kill -9",
    "queues purged",
    "queues deleted",
    "queues vanish",
    "messages duplicated",
    "messages stolen",
    "PostgreSQL restart",
    "PostgreSQL backends terminated",
    "PostgreSQL read-only",
    "rights taken away",
    "schema changed",
    "disk full",
    "password rotated",
    "wires cut",
    "wires hang",
)
RABBITMQ_ONLY = ("queues vanish",)
ROLE_FAULTS: Mapping[str, Sequence[str]] = {
    "api": (),
    "dispatcher": (),
    "worker": ("child kill -9", "SIGSTOP beyond the silence limit", "SIGTERM"),
}
#: SIGKILL, and then an exit at each of some failpoints: the role starts again after each, with the rest of them armed.
KILLED = "kill -9, then exits at"
CHAIN = 4
#: Where a worker is stopped until it was given up and what it ran is being run by others, and then woken.
STOPS = ("claim.committed", "run.ended")
#: The same with a worker that is armed from the start, and whose tasks' second runs last until it has written what it had to write.
OVERTAKEN = "stopped, and overtaken, at"
#: A detail of the fault that deletes queues: again, until messages went nowhere and nobody noticed.
UNNOTICED = "until unnoticed"
#: The pass of a failpoint at which a worker stops. Not the first: others must have claimed something by then, or nobody would take over.
STOPS_AT = 3


@dataclass(frozen=True)
class Submission:
    """A task as a client will send it, and what people will do with it: (seconds after it was answered, verb)."""

    key: str
    body: Mapping[str, Any]
    acts: Sequence[tuple[float, str]] = ()
    safely: bool = False
    """With an Idempotency-Key: however often it is repeated, one task is made."""


@dataclass(frozen=True)
class Plan:
    """A whole run. ``quiet`` is how many seconds the system gets to come to rest once all roles are up, and ``silence`` how long a worker may not beat.

    ``slots`` has the async slots of workers that have fewer than usual.
    """

    tasks: int
    seed: int
    kind: str
    faults: Sequence[Fault]
    mix: Sequence[tuple[float, str, float, float]]
    rate: float
    acts: bool = True
    priorities: Sequence[int] = range(10)
    mutate: str = ""
    silence: float = 3.0
    sweep_after: float = 2.0
    tick: float = 0.5
    quiet: float = 90.0
    roles: Sequence[str] = ROLES
    slots: Mapping[str, int] = field(default_factory=dict)
    clients: int = CLIENTS
    closed_loop: bool = False
    """Each client waits for the end of its task before it submits the next."""
    prefix: str = "k"
    lanes: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lanes", tuple(dict.fromkeys(fault.lane for fault in self.faults)))

    @property
    def submitted(self) -> int:
        """All tasks that clients submit, in whatever way."""
        return self.tasks + LOOPERS * LOOP_TASKS * sum(fault.kind == LOOP for fault in self.faults)

    @property
    def stops(self) -> bool:
        """Is a worker stopped for so long that it is given up, and woken?"""
        return any("stop" in fault.kind.lower() for fault in self.faults)

    @property
    def armed(self) -> Mapping[str, Mapping[str, str]]:
        """The failpoints that roles have from the start."""
        return {fault.lane: {fault.detail: f"stop@{STOPS_AT}"} for fault in self.faults if fault.kind == OVERTAKEN}

    def lane(self, name: str) -> list[Fault]:
        """A lane's faults in their order."""
        return sorted((fault for fault in self.faults if fault.lane == name), key=lambda fault: fault.at)

    def submissions(self, client: int) -> Iterator[Submission]:
        """One client's share."""
        for number in range(client, self.tasks, self.clients):
            yield self._submission(number, random.Random(self.seed * 1_000_003 + number))

    def _submission(self, number: int, chance: random.Random) -> Submission:
        _, type_, least, most = chance.choices(self.mix, [kind[0] for kind in self.mix])[0]
        body: dict[str, Any] = {"type": type_, "payload": {"seconds": round(chance.uniform(least, most), 3)}, "priority": chance.choice(self.priorities)}
        key = f"{self.prefix}{number}"
        body["metadata"] = {"key": key}
        if chance.random() < 0.3:
            body["tags"] = ["told"]
        if not self.acts:
            return Submission(key, body)
        if chance.random() < 0.04:
            body["delay"] = round(chance.uniform(0.5, 2), 2)
        if chance.random() < 0.02:
            # Most end in time, and those that a fault holds up expire.
            body["expires_at"] = (datetime.now(UTC) + timedelta(seconds=3)).isoformat()
        return Submission(key, body, _acts(chance), safely=chance.random() < 0.15)


def _acts(chance: random.Random) -> Sequence[tuple[float, str]]:
    """What people do to a task. Much of it comes too late and is refused; that is part of it."""
    soon, later = round(chance.uniform(0, 0.5), 2), round(chance.uniform(1, 4), 2)
    scripts = (
        [(soon, "cancel")],
        [(soon, "cancel"), (later, "retry")],
        [(soon, "hold"), (later, "release")],
        [(later, "retry")],
        [(0.0, "hold"), (later, "cancel")],
    )
    return chance.choice(scripts) if chance.random() < 0.1 else ()


#: (share, type, least seconds, most seconds)
EVERYTHING = (
    (48, "chaos.async", 0.0, 0.3),
    (20, "chaos.sync", 0.0, 0.0),
    (3, "chaos.sync", 0.05, 0.3),
    (12, "chaos.io", 0.0, 1.0),
    (5, "chaos.async", 1.0, 4.0),
    (2, "chaos.async", 5.0, 8.0),
    (4, "chaos.flaky", 0.0, 0.0),
    (2, "chaos.refuse", 0.0, 0.0),
    (1, "chaos.spent", 0.0, 0.0),
    (3, "chaos.parent", 0.0, 0.3),
)


def chaos(tasks: int, seed: int, kind: str) -> Plan:
    """Every fault at least once, and again for each further 50,000 tasks. ``kind`` is ``rabbitmq`` or ``embedded``."""
    rounds = max(1, round(tasks / ROUND_TASKS))
    chance = random.Random(seed)
    faults = [fault for number in range(rounds) for fault in _round(chance, kind, number, rounds)]
    return Plan(tasks, seed, kind, faults, EVERYTHING, rate=tasks / rounds / ROUND_SECONDS, quiet=90 + tasks / 500)


QUICK = ((3, "chaos.async", 0.0, 0.02), (1, "chaos.sync", 0.0, 0.0))


def calm(tasks: int, seed: int, kind: str) -> Plan:
    """Eight clients in a closed loop, and nothing goes wrong: no message is lost, so nothing may be swept. The sweep comes as late as in production."""
    return _loop(tasks, seed, kind, prefix="k", sweep_after=30.0)


def loop(plan: Plan, number: int) -> Plan:
    """What the clients of a closed loop do in the middle of another plan."""
    return _loop(LOOPERS * LOOP_TASKS, plan.seed, plan.kind, prefix=f"loop{number}-", sweep_after=plan.sweep_after)


def _loop(tasks: int, seed: int, kind: str, *, prefix: str, sweep_after: float) -> Plan:
    # As fast as they are answered.
    rate = 1e6
    return Plan(tasks, seed, kind, (), QUICK, rate, acts=False, sweep_after=sweep_after, clients=LOOPERS, closed_loop=True, prefix=prefix)


def _round(chance: random.Random, kind: str, number: int, rounds: int) -> Iterator[Fault]:
    lanes: dict[str, list[tuple[str, str]]] = {SERVERS: [(what, "") for what in SERVER_FAULTS if kind == "rabbitmq" or what not in RABBITMQ_ONLY]}
    lanes[CLIENTS_LANE] = [(LOOP, "")]
    for role in ROLES:
        lanes[role] = [(what, "") for what in ROLE_FAULTS[role.partition("-")[0]]]
    for number_of_worker, point in enumerate(STOPS, 1):
        lanes[f"worker-{number_of_worker}"].append(("stopped at", point))
    for role, points in _dealt(chance).items():
        lanes[role] += [(KILLED, " ".join(points[first : first + CHAIN])) for first in range(0, max(1, len(points)), CHAIN)]
    for lane, faults in lanes.items():
        chance.shuffle(faults)
        for position, (what, detail) in enumerate(faults):
            # Early enough that there is work left after the last one.
            at = (number + 0.02 + 0.85 * (position + chance.random() / 2) / len(faults)) / rounds
            yield Fault(lane, what, at, detail)


def _dealt(chance: random.Random) -> Mapping[str, list[str]]:
    """Which role passes which failpoints, in some order."""
    dealt: dict[str, list[str]] = {role: [] for role in ROLES}
    for point in chance.sample(list(POINTS), len(POINTS)):
        kind = _role_of(point)
        # Only the second dispatcher's wire can be cut, and without that nothing is withdrawn.
        fewer = min((f"{kind}-1", f"{kind}-2"), key=lambda role: (len(dealt[role]), chance.random()))
        dealt["dispatcher-2" if point == "withdraw.committed" else fewer].append(point)
    return dealt


def _role_of(point: str) -> str:
    if point.startswith(("submit", "verb", "hint")):
        return "api"
    return "dispatcher" if point in DISPATCHERS else "worker"


DISPATCHERS = ("housekeep.committed", "dispatch.committed", "publish.unsent", "publish.confirmed", "withdraw.committed", "delivery.dispatched")
