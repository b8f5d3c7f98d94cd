"""Failpoints: named places, between two steps that must not both be lost, where a test can end or stop this process.

The environment variable TASKYARD_FAILPOINTS names them with what happens there, for example
``dispatch.committed=exit@3,finish.committed=exit:0.01,seed=7``:

- ``exit`` ends the process at once, as a crash would; ``stop`` halts it (SIGSTOP) until somebody sends SIGCONT;
- ``@3`` means at the third pass, ``:0.01`` at each pass with this probability; neither: at the first;
- ``seed`` makes the probabilities the same in each run.

Each role arms them at its start. While none is armed, a pass costs what an empty function costs.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from taskyard.errors import ConfigurationError
from taskyard.spelling import did_you_mean

log = structlog.get_logger(__name__)

VARIABLE: Final = "TASKYARD_FAILPOINTS"
#: What a process that ended at a failpoint exits with.
EXIT_STATUS: Final = 70

#: Every failpoint by name, with what has been done when it is passed, and what has not. docs/failpoints.md has the same table.
POINTS: Final[Mapping[str, str]] = {
    "submit.uncommitted": "the API has inserted tasks and not committed; passed where that takes more than one statement",
    "submit.committed": "the API has committed tasks and answered nobody",
    "verb.committed": "the API has committed a person's verb and not answered",
    "housekeep.committed": "a dispatcher has reaped, or moved a batch of what is due or expired, and dispatched nothing",
    "hint.unsent": "the API has committed a task and is about to send its direct hint",
    "hint.sent": "the API has sent a direct hint; dispatchers have not been told of the task",
    "dispatch.committed": "a dispatcher has marked tasks as queued and published none",
    "publish.unsent": "a dispatcher is about to send a message",
    "publish.confirmed": "the broker has confirmed a message; others that were sent with it may not be confirmed",
    "withdraw.committed": "a dispatcher has put back in line what the broker did not take",
    "delivery.dispatched": "a dispatcher has marked deliveries as queued and published none",
    "message.taken": "a worker has got a message and claimed nothing",
    "ledger.uncommitted": "a worker has made its statements and not committed",
    "claim.committed": "a worker has claimed tasks and started none",
    "handler.returned": "a handler has returned in its process, and the worker does not know",
    "run.ended": "a worker knows how a run ended and has not recorded it",
    "finish.committed": "a worker has recorded how runs ended and told nobody",
    "ack.unsent": "a worker is done with a message and has not acknowledged it",
    "ack.sent": "a worker has acknowledged a message",
    "beat.committed": "a worker has beaten its heart",
    "delivery.claimed": "a worker has claimed a delivery and not sent it",
    "delivery.sent": "a worker has sent a delivery and not recorded it",
    "delivery.finished": "a worker has recorded a delivery and not acknowledged its message",
}


def _exit() -> None:
    os._exit(EXIT_STATUS)


def _stop() -> None:
    # Sent to this thread, it stops the whole process, and this thread before its next instruction.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


ACTIONS: Final[Mapping[str, Callable[[], None]]] = {"exit": _exit, "stop": _stop}


@dataclass(slots=True)
class Armed:
    """What happens at a failpoint: at pass number ``at``, or else with a ``probability``."""

    action: str
    at: int | None = None
    probability: float = 0.0
    passes: int = field(default=0, init=False)

    def due(self, chance: random.Random) -> bool:
        """Count a pass. Is it the one?"""
        self.passes += 1
        return self.passes == self.at if self.at is not None else chance.random() < self.probability


_armed: dict[str, Armed] = {}
_chance = random.Random()


def hit(name: str) -> None:
    """Pass a failpoint."""
    if _armed:
        _pass(name)


def _pass(name: str) -> None:
    if (armed := _armed.get(name)) and armed.due(_chance):
        log.warning("failpoint", name=name, action=armed.action, passes=armed.passes)
        ACTIONS[armed.action]()


def arm(environment: Mapping[str, str] = os.environ) -> None:
    """Arm what TASKYARD_FAILPOINTS names, and nothing else.

    Raises:
        ConfigurationError: it names an unknown failpoint or action, or is garbled.
    """
    _armed.clear()
    armed, seed = parse(environment.get(VARIABLE, ""))
    if armed:
        _chance.seed(seed)
        _armed.update(armed)
        log.warning("failpoints.armed", names=sorted(armed), consequence="this process will end or stop there: a test's tool")


def parse(text: str) -> tuple[dict[str, Armed], int | None]:
    """The failpoints that a text names, and its seed. Raises ConfigurationError."""
    armed: dict[str, Armed] = {}
    seed: int | None = None
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, what = (part.strip() for part in entry.partition("="))
        if not equals:
            raise ConfigurationError(f"{VARIABLE}: expected name=action, such as dispatch.committed=exit@3, not {entry!r}")
        if name == "seed":
            seed = int(_number(what, "seed", int))
        elif name in POINTS:
            armed[name] = _action(what)
        else:
            raise ConfigurationError(f"{VARIABLE}: there is no failpoint {name!r}.{did_you_mean(name, POINTS)}")
    return armed, seed


def _action(text: str) -> Armed:
    action, at, count = text.partition("@")
    if not at:
        action, colon, chance = text.partition(":")
    if action not in ACTIONS:
        raise ConfigurationError(f"{VARIABLE}: there is no action {action!r}; there are {' and '.join(ACTIONS)}")
    if at:
        return Armed(action, at=int(_number(count, "pass", int, least=1)))
    return Armed(action, probability=_number(chance, "probability", float, most=1)) if colon else Armed(action, at=1)


def _number(text: str, what: str, kind: Callable[[str], float], least: float = 0, most: float = float("inf")) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise ConfigurationError(f"{VARIABLE}: {text!r} is no {what}")
    return value
