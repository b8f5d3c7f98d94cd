"""Everything counted when all is quiet: the database against what clients, handlers and the receiver wrote."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from sqlalchemy import text

from taskyard.events import NO_TASK
from taskyard.failpoints import POINTS

from .database import Database
from .history import TERMINAL, Event, Verdict, judge
from .plan import LOOP, Plan
from .records import Records
from .roles import Roles

#: Faults that lose no message for good.
HARMLESS = ("queues_vanish", "messages_duplicated", "child_kill_-9", LOOP.replace(" ", "_"))
#: Seconds between two looks at how much is on its way.
BETWEEN_LOOKS = 5.0


@dataclass(frozen=True, slots=True)
class Count:
    """A number, and whether it is as promised. ``wrong`` is the sentence that says what is the matter, with what is known."""

    name: str
    value: int
    wanted: str = ""
    wrong: str = ""


def exactly(name: str, value: int, wanted: int, sentence: str) -> Count:
    """A number that must be this."""
    return Count(name, value, f"{wanted:,}", "" if value == wanted else f"{sentence} ({value:,} instead of {wanted:,})")


def at_least(name: str, value: int, least: int, sentence: str) -> Count:
    """A number that shows that something was put to the test at all."""
    return Count(name, value, f"≥ {least:,}", "" if value >= least else f"{sentence} ({value:,}, not {least:,})")


class Counter:
    """Reads everything once."""

    def __init__(self, plan: Plan, database: Database, roles: Roles, records: Records) -> None:
        self._plan = plan
        self._database = database
        self._roles = roles
        self._records = records

    def all(self) -> Iterator[Count]:
        """Every count, in the order of the table."""
        yield from self._submissions()
        yield from self._lives()
        yield from self._writes()
        yield from self._notifications()
        yield from self._sweeps()
        yield from self._faults()

    # --- what was submitted ---

    def _submissions(self) -> Iterator[Count]:
        answered: dict[str, str] = {}
        unanswered: defaultdict[str, int] = defaultdict(int)
        for what, _, key, *rest in self._records.clients.lines():
            if what == "answered":
                answered[rest[0]] = key
            elif what == "unanswered":
                unanswered[key] += 1
        rows = {str(row.id): row.key for row in self._database.rows("SELECT id, metadata ->> 'key' AS key FROM tasks WHERE parent_id IS NULL")}
        yield exactly("submissions answered with 201", len(answered), self._plan.submitted, "Submissions were refused, or not all were made")
        yield exactly("of those, rows", len(answered.keys() & rows.keys()), len(answered), "Tasks that were answered with 201 are not there")
        spare = [rows[id_] for id_ in rows.keys() - answered.keys()]
        yield Count("rows of requests that got no answer", len(spare))
        strange = [key for key in set(spare) if spare.count(key) > unanswered[key]]
        yield exactly("rows that nobody asked for", len(strange), 0, f"Rows exist that no request explains: {strange[:5]}")
        yield from self._children()
        live = self._database.rows("SELECT id, status FROM tasks WHERE ended IS NULL")
        known = [f"{row.id} is {row.status}" for row in live[:5]]
        yield exactly("tasks that did not end", len(live), 0, f"Tasks are stuck: {known}")

    def _children(self) -> Iterator[Count]:
        named = self._database.rows(
            "SELECT jsonb_array_elements_text(result -> 'children') AS id FROM tasks WHERE type = 'chaos.parent' AND ended = 'succeeded'"
        )
        there = self._database.rows("SELECT id FROM tasks WHERE parent_id IS NOT NULL")
        yield exactly("tasks that tasks submitted", len(there), len(named), "Children and what their parents named differ")
        strange = {row.id for row in named} ^ {str(row.id) for row in there}
        yield exactly("of those, not named by their parent", len(strange), 0, f"Children and what their parents named differ: {sorted(strange)[:5]}")

    # --- how they lived ---

    def _lives(self) -> Iterator[Count]:
        starts: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
        for what, at, id_, fence, _ in self._records.handlers.lines():
            if what == "start":
                starts[id_].append((float(at), int(fence)))
        verdict, strangers = Verdict(), set(starts)
        for task, events in self._histories():
            judge(task, events, starts.get(task, ()), verdict)
            strangers.discard(task)
        told = f" For example: {verdict.examples[:3]}" if verdict.examples else ""
        yield exactly("ends", verdict.ends, verdict.lives, f"Each life must end once.{told}")
        yield exactly("ended twice in one life", verdict.ended_twice, 0, f"Tasks ended twice.{told}")
        yield exactly("moves after the end", verdict.moved_after_end, 0, f"Tasks moved after their end.{told}")
        yield exactly("starts after the end", verdict.started_after_end, 0, f"Handlers were started for ended tasks.{told}")
        yield Count("handler starts", sum(map(len, starts.values())))
        least = int(any(fault.lane.startswith("worker") for fault in self._plan.faults))
        yield at_least("runs cut short and repeated", verdict.repeated_runs, least, "No run was ever repeated, so nothing was put to the test")
        yield exactly("repeated without a reason", verdict.unexplained_runs + len(strangers), 0, f"Handlers ran, and the history does not say why.{told}")

    def _histories(self) -> Iterator[tuple[str, Iterator[Event]]]:
        # What befell the installation, such as a lost worker, is nobody's life.
        statement = text("SELECT task_id, type, extract(epoch FROM time)::float8 AS at, data FROM events WHERE task_id <> :nobody ORDER BY task_id, id")
        with self._database.engine.connect() as connection:
            rows = connection.execution_options(isolation_level="READ COMMITTED", yield_per=5000).execute(statement, {"nobody": NO_TASK})
            for task, group in groupby(rows, key=lambda row: row.task_id):
                yield str(task), (Event(row.type, row.at, row.data) for row in group)

    def _writes(self) -> Iterator[Count]:
        worked = {(id_, int(fence)) for what, _, id_, fence, _ in self._records.handlers.lines() if what == "end"}
        ended = self._database.rows(
            """SELECT id, fence, ended, COALESCE(result ->> 'fence', error ->> 'fence')::bigint AS written FROM tasks
            WHERE ended = 'succeeded' OR (ended = 'failed' AND error ->> 'code' = 'refused')"""
        )
        stale = [str(row.id) for row in ended if row.written != row.fence]
        unworked = [str(row.id) for row in ended if row.ended == "succeeded" and (str(row.id), row.written) not in worked]
        attempted = sum(1 for _ in self._roles.events("write.stale"))
        if self._plan.stops:
            yield at_least("stale writes attempted", attempted, 1, "No stale write was ever attempted, so the fence was not put to the test")
        yield exactly("stale writes accepted", len(stale), 0, f"Results of stale runs stand in rows: {stale[:5]}")
        yield exactly("successes without work", len(unworked), 0, f"Tasks succeeded and no handler says so: {unworked[:5]}")

    # --- what the world was told ---

    def _notifications(self) -> Iterator[Count]:
        wanted = {
            f"evt_{row.id}"
            for row in self._database.rows(
                "SELECT e.id FROM events e JOIN tasks t ON t.id = e.task_id WHERE 'told' = ANY (t.tags) AND e.type = ANY (:types)", types=list(TERMINAL)
            )
        }
        received: defaultdict[str, set[str]] = defaultdict(set)
        forged = 0
        for what, _, delivery, *rest in self._records.receiver.lines():
            if what == "received":
                received[rest[0]].add(delivery)
            else:
                forged += 1
        yield exactly("notifications wanted and received", len(wanted & received.keys()), len(wanted), "Notifications did not arrive")
        yield exactly("notifications not wanted", len(received.keys() - wanted), 0, "Notifications arrived that nobody wanted")
        yield exactly("notifications with two ids", sum(len(ids) > 1 for ids in received.values()), 0, "A notification's id changed between tries")
        yield exactly("wrong signatures", forged, 0, "Signatures were wrong")
        dead = self._database.value("SELECT count(*) FROM deliveries WHERE status <> 'delivered'")
        yield exactly("deliveries not delivered", dead, 0, "Deliveries are not delivered")

    # --- what was lost on the way, and why ---

    def _sweeps(self) -> Iterator[Count]:
        reasons = self._reasons()
        swept = [(datetime.fromisoformat(line["timestamp"]).timestamp(), int(line["count"])) for line in self._roles.events("tasks.swept")]
        # A queued task may be as old as ten sweeps: so long the dispatcher trusts a queue that is not empty.
        age = self._plan.sweep_after * 10 + 1
        unexplained = sum(count for at, count in swept if not any(began < at and at - age < ended for began, ended in reasons))
        lost = sum(count for _, count in swept)
        if self._plan.faults:
            yield Count("messages lost and sent again", lost)
        else:
            yield exactly("tasks swept without a fault", lost, 0, "Tasks waited for the sweep, and nothing had gone wrong")
        yield exactly("of those, lost without a reason", unexplained, 0, "Messages were lost that the broker's confirms and returns should have told of")

    def _reasons(self) -> list[tuple[float, float]]:
        """From when until when a message could be lost, or held up, after the broker had confirmed it: (began, ended and settled)."""
        began: dict[tuple[str, ...], float] = {}
        found = []
        for what, at, *fault in self._records.faults.lines():
            if what == "behind":
                found.append((float(at) - BETWEEN_LOOKS, float(at) + BETWEEN_LOOKS))
                continue
            if fault[0].startswith("api") or fault[1] in HARMLESS:
                continue
            if what == "began":
                began[tuple(fault)] = float(at)
            else:
                found.append((began[tuple(fault)], float(at) + 5.0))
        return found

    def _faults(self) -> Iterator[Count]:
        lines = [line for line in self._records.faults.lines() if line[0] != "behind"]
        done = [f"{what[1]} {what[2]}".replace("_", " ") for state, _, *what in lines if state == "done"]
        missed = [" ".join(what) for state, _, *what in lines if state == "missed"]
        yield exactly("faults", len(done), len(self._plan.faults), f"Faults did not do what they set out to: {missed}")
        wanted = sum(word in POINTS for fault in self._plan.faults for word in fault.detail.split())
        reached = sum(1 for _ in self._roles.events("failpoint"))
        yield at_least("failpoints reached", reached, wanted, "Roles did not pass the failpoints that were armed")
        yield Count("role processes that ended and were started again", sum(self._roles.ended.values()))


def leftovers(database: Database, roles: Roles, depths: dict[str, int]) -> Iterator[Count]:
    """What must be gone once all roles were stopped."""
    orphans = [f"{process.pid} {' '.join(process.cmdline()[:4])}" for process in roles.orphans()]
    yield exactly("orphaned processes", len(orphans), 0, f"Processes outlived their roles: {orphans[:5]}")
    names = [row.name for row in database.rows("SELECT name FROM workers")]
    yield exactly("workers still registered", len(names), 0, f"Workers are registered that are gone: {names}")
    leases = database.value("SELECT count(*) FROM tasks WHERE worker_id IS NOT NULL OR (ended IS NULL AND queued_at IS NOT NULL)")
    yield exactly("leases", leases, 0, "Tasks are still held by somebody")
    yield exactly("messages in the broker", sum(depths.values()), 0, f"Messages were not consumed: {depths}")
