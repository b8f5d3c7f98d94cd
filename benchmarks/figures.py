"""Figures: what was measured, in each round, and the sentences that statistics say about it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of values that are not empty."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass
class Figure:
    """One figure of one side in one case, with a value for each round.

    ``samples`` are the single measurements behind it where there are any (latencies); their p50 and p99 are over all rounds.
    """

    measure: str
    case: str
    side: str
    name: str
    unit: str
    rounds: list[float] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the rounds; of the samples where there are any."""
        return statistics.median(self.samples or self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest round."""
        return min(self.rounds), max(self.rounds)

    def told(self) -> dict[str, Any]:
        """For the JSON report. Samples are told by their percentiles."""
        low, high = self.spread
        told: dict[str, Any] = {"measure": self.measure, "case": self.case, "side": self.side, "figure": self.name, "unit": self.unit}
        told |= {"median": self.median, "min": low, "max": high, "rounds": self.rounds}
        if self.samples:
            told |= {"p50": self.median, "p99": percentile(self.samples, 99), "samples": len(self.samples)}
        return told


class Figures:
    """All figures of a run, in the order in which they were first seen."""

    def __init__(self) -> None:
        self._figures: dict[tuple[str, str, str, str], Figure] = {}

    def __iter__(self) -> Iterator[Figure]:
        return iter(self._figures.values())

    def add(self, measure: str, case: str, side: str, name: str, unit: str, value: float) -> None:
        """One round's value."""
        self._figure(measure, case, side, name, unit).rounds.append(value)

    def add_samples(self, measure: str, case: str, side: str, name: str, unit: str, samples: Sequence[float]) -> None:
        """One round's single measurements; the round's value is their median."""
        figure = self._figure(measure, case, side, name, unit)
        figure.rounds.append(statistics.median(samples))
        figure.samples.extend(samples)

    def ratio(self, figure: Figure) -> float | None:
        """Taskyard's median over this figure's: against the first Taskyard side that has the same figure in the same case.

        Growth compares Taskyard with itself: this figure's median over that of the first size.
        """
        same = (f for f in self._figures.values() if (f.measure, f.case, f.name) == (figure.measure, figure.case, figure.name))
        ours = next((f for f in same if f.side.startswith("Taskyard")), None)
        if ours is None or ours is figure or not figure.median or not ours.median:
            return None
        return figure.median / ours.median if figure.measure == "growth" else ours.median / figure.median

    def _figure(self, measure: str, case: str, side: str, name: str, unit: str) -> Figure:
        return self._figures.setdefault((measure, case, side, name), Figure(measure, case, side, name, unit))
