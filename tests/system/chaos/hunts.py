"""The shortest runs that find a mutation, so that the counts are known to see what they count.

In each of them the fault goes on until it has bitten, and that is seen in the database or at the broker, not hoped for: how fast the
machine is decides how long a hunt takes, and not whether it finds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .plan import KILLED, OVERTAKEN, SERVERS, UNNOTICED, Fault, Plan

#: Seconds that each run takes; long enough for a worker that is killed or stopped to have some.
SLOW = ((1, "chaos.async", 2.0, 2.5),)
AGAIN = ((1, "chaos.again", 1.0, 1.5),)
QUICK = ((3, "chaos.async", 0.0, 0.2), (1, "chaos.sync", 0.0, 0.0))
ROLES = ("api-1", "dispatcher-1", "worker-1", "worker-2")
#: Not found may be the machine's doing all the same (a role that did not start in a minute, say): so often, with one seed after the
#: other, is a hunt run before it counts.
TRIES = 3


@dataclass(frozen=True)
class Hunt:
    """Which count must be wrong without the guard; what is done, what the tasks are, how many, and how many come in a second.

    ``quiet`` is short where tasks are left that never end, as that is what is looked for.
    """

    found_by: str
    faults: Sequence[Fault]
    mix: Sequence[tuple[float, str, float, float]]
    tasks: int
    rate: float
    tick: float = 0.5
    silence: float = 2.0
    quiet: float = 60.0
    slots: int = 1000


HUNTS: Mapping[str, Hunt] = {
    # The broker gives a worker as many messages as it has slots. With few of them, what it ran waits in line for the other one, and not in
    # the socket of a worker that is stopped.
    "fence": Hunt("stale writes accepted", (Fault("worker-1", OVERTAKEN, 0.1, "run.ended"),), AGAIN, 80, 20, slots=8),
    "sweep": Hunt("tasks that did not end", (Fault(SERVERS, "messages stolen", 0.2),), QUICK, 120, 40, quiet=12),
    "hint-sweep": Hunt("tasks that did not end", (Fault(SERVERS, "messages stolen", 0.2),), QUICK, 120, 40, quiet=12),
    "reap": Hunt("tasks that did not end", (Fault("worker-1", KILLED, 0.3), Fault("worker-2", KILLED, 0.5)), SLOW, 80, 20, quiet=12),
    # A dispatcher that looks at the broker itself finds that its queues are gone; between two ticks only the broker's answer can tell it.
    "confirm": Hunt("of those, lost without a reason", (Fault(SERVERS, "queues vanish", 0.2, UNNOTICED),), QUICK, 120, 40, tick=4.0, silence=20.0),
    "terminal-guard": Hunt("starts after the end", (Fault(SERVERS, "messages duplicated", 0.2),), QUICK, 120, 40),
}


def mutated(mutate: str, seed: int, kind: str, *, control: bool = False) -> Plan:
    """The run that finds a mutation; as a ``control`` with the guard left in.

    All tasks are equally urgent: a more urgent one whose message was lost is claimed with the message of any other.
    """
    hunt = HUNTS[mutate]
    return Plan(
        hunt.tasks,
        seed,
        kind,
        hunt.faults,
        hunt.mix,
        hunt.rate,
        acts=False,
        priorities=(5,),
        mutate="" if control else mutate,
        silence=hunt.silence,
        sweep_after=3.0,
        tick=hunt.tick,
        quiet=hunt.quiet,
        roles=ROLES,
        slots={"worker-1": hunt.slots},
    )
