"""What children are given to do: a run, runs of a batch handler that one call works on, and series of both. All in the engine's loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import UUID

from sqlalchemy import RowMapping

from taskyard.dispatch.bundles import BUDGET
from taskyard.handlers import Handler
from taskyard_worker.outcomes import Reason, unstarted
from taskyard_worker.processes import Child

if TYPE_CHECKING:
    from taskyard_worker.runner import Runner

Report = dict[str, Any] | None
Ended = TypeVar("Ended")

#: By how much a batch shrinks with each attempt that its tasks have spent: what fails a whole call soon fails alone.
CUT = 10


def room(handler: Handler[Any, Any], row: RowMapping) -> int:
    """How many tasks, this one included, may share a call with it.

    One that was lost runs alone: nobody knows which of a call's tasks has ended its process. One that is tried again shares its call with fewer
    each time: nobody knows which of them made the call raise.
    """
    if handler.batch is None or row["lost"]:
        return 1
    spent: int = row["attempt"] - 1
    return max(1, handler.batch // int(CUT ** min(spent, 4)))


def bunch(rows: Iterable[tuple[RowMapping, Ended]], handlers: Mapping[str, Handler[Any, Any]]) -> list[list[tuple[RowMapping, Ended]]]:
    """Claimed rows by the calls that are to work on them: alone, or together with others of their batch handler.

    Together go those of one namespace, one timeout (the call has one) and one attempt.
    """
    found: list[list[tuple[RowMapping, Ended]]] = []
    unfilled: dict[tuple[Any, ...], list[tuple[RowMapping, Ended]]] = {}
    for pair in rows:
        row = pair[0]
        handler = handlers[row["type"]]
        size = room(handler, row)
        key = (handler.type, row["namespace"], row["timeout"], row["attempt"]) if size > 1 else (row["id"],)
        together = unfilled.get(key)
        if together is None or len(together) >= size:
            together = unfilled[key] = []
            found.append(together)
        together.append(pair)
    return found


class Unit(Protocol):
    """What a child works on at one time: a Run, or Together."""

    runner: Runner
    key: int
    job: dict[str, Any]
    child: Child
    timeout: float
    series: Series | None
    timer: asyncio.TimerHandle | None
    due: float
    reason: Reason | None
    awaited: asyncio.Future[Report] | None
    starting: bool

    def arm(self, put_off: float = 0.0) -> None: ...

    def end(self, reason: Reason) -> None: ...

    def reported(self, report: Report) -> None: ...

    def progressed(self, said: dict[str, Any]) -> None: ...

    def logged(self, said: dict[str, Any]) -> None: ...

    def begins(self, seconds: float) -> None: ...

    def split(self, report: Report) -> Sequence[tuple[Run, Report]]: ...


def _arm(unit: Unit, put_off: float) -> None:
    """Its time runs from now on, or ``put_off`` seconds later. That of one in a series is kept by the series."""
    if unit.series is not None:
        unit.series.put_off(unit, put_off)
        return
    if unit.timer is not None:
        unit.timer.cancel()
    unit.timer = asyncio.get_running_loop().call_later(unit.timeout + put_off, unit.end, "timeout")


@dataclass(eq=False, slots=True)
class Run:
    """One claimed task on its way through this worker. A child's work, unless it shares one."""

    runner: Runner
    key: int
    id: UUID
    fence: int
    attempt: int
    timeout: float
    handler: Handler[Any, Any]
    job: dict[str, Any]
    child: Child
    on_ended: Callable[[str], None]
    #: There is no attempt after this one, and no other run if this one is lost.
    last_attempt: bool = False
    last_loss: bool = False
    together: Together | None = None
    series: Series | None = None
    timer: asyncio.TimerHandle | None = None
    due: float = 0.0
    reason: Reason | None = None
    awaited: asyncio.Future[Report] | None = None
    starting: bool = False
    abandoned: bool = False

    def arm(self, put_off: float = 0.0) -> None:
        """It runs from now on, and has its time, ``put_off`` seconds later."""
        _arm(self, put_off)

    def end(self, reason: Reason) -> None:
        """Ask the run to end. The first reason stands."""
        if self.reason is None:
            self.reason = reason
            if self.together is None:
                self.runner.enforce(self)
            else:
                self.together.one_ends(self)

    def reported(self, report: Report) -> None:
        """It is over."""
        self.runner.over(self, report)

    def progressed(self, said: dict[str, Any]) -> None:
        """It has said how far it is."""
        self.runner.said(self, said)

    def logged(self, said: dict[str, Any]) -> None:
        """It has logged lines."""
        self.runner.logged(self, said)

    def begins(self, seconds: float) -> None:
        """Its plugin's resources are being made, for so many seconds at most; 0: they are there."""
        self.runner.starting(self, seconds)

    def split(self, report: Report) -> Sequence[tuple[Run, Report]]:
        """What is reported of each run."""
        return ((self, report),)


@dataclass(eq=False, slots=True)
class Together:
    """Runs of a batch handler that one call works on. A child's work."""

    runner: Runner
    key: int
    job: dict[str, Any]
    child: Child
    runs: Sequence[Run]
    timeout: float
    series: Series | None = None
    timer: asyncio.TimerHandle | None = None
    due: float = 0.0
    reason: Reason | None = None
    awaited: asyncio.Future[Report] | None = None
    starting: bool = False

    def arm(self, put_off: float = 0.0) -> None:
        """The call begins, and has its time, ``put_off`` seconds later."""
        _arm(self, put_off)

    def end(self, reason: Reason) -> None:
        """Ask the whole call to end. A run that was asked before keeps its own reason."""
        for run in self.runs:
            run.reason = run.reason or reason
        if self.reason is None:
            self.reason = reason
            self.runner.enforce(self)

    def one_ends(self, run: Run) -> None:
        """One of its runs was asked to end: its context says so, and the others go on. When all were asked, the call is made to end."""
        if all(one.reason is not None for one in self.runs):
            self.end(run.reason or "cancel")
        else:
            self.child.send({"cancel": self.key, "item": self.runs.index(run)})

    def reported(self, report: Report) -> None:
        """The call is over."""
        self.runner.over(self, report)

    def progressed(self, said: dict[str, Any]) -> None:
        """One of its runs has said how far it is."""
        self.runner.said(self.runs[said.pop("item")], said)

    def logged(self, said: dict[str, Any]) -> None:
        """One of its runs has logged lines."""
        self.runner.logged(self.runs[said.pop("item")], said)

    def begins(self, seconds: float) -> None:
        """Its plugin's resources are being made, for so many seconds at most; 0: they are there."""
        self.runner.starting(self, seconds)

    def split(self, report: Report) -> Sequence[tuple[Run, Report]]:
        """What is reported of each run: its own, or what became of the call."""
        reports = report["items"] if report and report["outcome"] == "batch" else [report] * len(self.runs)
        return tuple(zip(self.runs, reports, strict=True))


@dataclass(eq=False, slots=True)
class Series:
    """Units that one process works through, one after the other. All but the first have not begun."""

    child: Child
    units: deque[Unit]
    on_over: Callable[[Series], None]
    budget: asyncio.TimerHandle | None = None
    timer: asyncio.TimerHandle | None = None
    broken: bool = False

    def begin(self) -> None:
        """Start all of them, and give back those that the budget leaves no time for."""
        self.units[0].runner.send(self.child, self.units)
        self._arm(self.units[0])
        if len(self.units) > 1:
            self.budget = asyncio.get_running_loop().call_later(BUDGET, self.child.give_back)

    def judge(self, report: Report) -> Report:
        """What is to be recorded of one that is over: what a child that died had not begun is not lost."""
        if report is None and self.broken:
            report = unstarted("its process ended before it began")
        self.broken = self.broken or report is None or report["outcome"] == "interrupted"
        return report

    def over(self, unit: Unit) -> None:
        """One of them is over; the next one runs."""
        began = unit is self.units[0]
        self.units.remove(unit)
        if not self.units:
            self._close()
        elif began and not self.broken:
            self._go_on(self.units[0])

    def _go_on(self, unit: Unit) -> None:
        if unit.reason is None:
            self._arm(unit)
        else:
            unit.runner.enforce(unit)

    def _arm(self, unit: Unit) -> None:
        """It runs from now on, and has its time. One timer serves them all: it looks who runs when it rings."""
        loop = asyncio.get_running_loop()
        unit.due = loop.time() + unit.timeout
        if self.timer is None or unit.due < self.timer.when():
            self._ring_at(unit.due)

    def put_off(self, unit: Unit, seconds: float) -> None:
        """Its time begins so many seconds from now."""
        unit.due = asyncio.get_running_loop().time() + unit.timeout + seconds
        if unit is self.units[0]:
            self._ring_at(unit.due)

    def _ring_at(self, due: float) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = asyncio.get_running_loop().call_at(due, self._ring)

    def _ring(self) -> None:
        unit = self.units[0]
        if asyncio.get_running_loop().time() < unit.due:
            self._ring_at(unit.due)
        else:
            unit.end("timeout")

    def _close(self) -> None:
        for timer in (self.budget, self.timer):
            if timer is not None:
                timer.cancel()
        self.on_over(self)
