"""What a run prints: a line now and then, and the table at its end."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .count import BETWEEN_LOOKS, Count
from .plan import Plan

console = Console(highlight=False, soft_wrap=True)


class Progress:
    """One line every few seconds, so that a log shows it too."""

    def __init__(self, every: float = BETWEEN_LOOKS) -> None:
        self._began = time.monotonic()
        self._every = every
        self._next = 0.0

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """Say something now."""
        console.print(f"[dim]{self.seconds():6.1f} s[/dim]  {escape(text)}")

    def due(self) -> bool:
        """Is it time to say how things stand?"""
        if self.seconds() < self._next:
            return False
        self._next = self.seconds() + self._every
        return True


def print_table(plan: Plan, counts: Sequence[Count], seconds: float) -> None:
    """The table, and what is wrong in sentences."""
    title = f"{plan.tasks:,} tasks, seed {plan.seed}, {'PostgreSQL and RabbitMQ' if plan.kind == 'rabbitmq' else 'the embedded pair'}, {seconds:.0f} s"
    table = Table(title=title + (f", without {plan.mutate}" if plan.mutate else ""), title_justify="left")
    table.add_column("counted")
    table.add_column("found", justify="right")
    table.add_column("promised", justify="right")
    for count in counts:
        colour = "red" if count.wrong else "green" if count.wanted else "default"
        table.add_row(count.name, f"[{colour}]{count.value:,}[/{colour}]", count.wanted)
    console.print(table)
    for count in counts:
        if count.wrong:
            console.print(f"[red]{escape(count.name)}[/red]: {escape(count.wrong)}")
