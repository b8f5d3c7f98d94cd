"""Samples as Prometheus text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.process_collector import ProcessCollector

from taskyard.metrics import INFINITY, Key, Metric


@dataclass(frozen=True, slots=True)
class Exposition:
    """Everything that one scrape shows; a collector, as prometheus_client calls it."""

    metrics: Iterable[Metric]
    samples: Mapping[Key, float]

    def collect(self) -> Iterator[Family]:
        """The metric families."""
        yield from ProcessCollector(registry=CollectorRegistry()).collect()
        by_name: dict[str, dict[tuple[str, ...], float]] = {}
        for (name, labels), value in self.samples.items():
            by_name.setdefault(name, {})[labels] = value
        for metric in self.metrics:
            yield _histogram(metric, by_name) if metric.kind == "histogram" else _simple(metric, by_name.get(metric.name, {}))

    def text(self) -> bytes:
        """The Prometheus text format, version 0.0.4."""
        return generate_latest(self)


def _simple(metric: Metric, values: Mapping[tuple[str, ...], float]) -> Family:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    from_the_start = [()] if not metric.labels and metric.kind == "counter" else []
    for labels, value in sorted((dict.fromkeys(from_the_start, 0.0) | dict(values)).items()):
        # A row of a version whose metric had other labels.
        if len(labels) == len(metric.labels):
            family.add_metric(labels, value)
    return family


def _histogram(metric: Metric, by_name: Mapping[str, Mapping[tuple[str, ...], float]]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    counted: dict[tuple[str, ...], dict[float, float]] = {}
    for (*labels, bound), count in by_name.get(f"{metric.name}_bucket", {}).items():
        if len(labels) == len(metric.labels):
            counted.setdefault(tuple(labels), {})[float(bound)] = count
    for series, counts in sorted(counted.items()):
        family.add_metric(series, _cumulated(metric, counts), by_name.get(f"{metric.name}_sum", {}).get(series, 0.0))
    return family


def _cumulated(metric: Metric, counts: Mapping[float, float]) -> list[tuple[str, float]]:
    """What is at most each bound. Bounds of an older version that are no more have their counts in the next larger."""
    bounds = [(str(bound), bound) for bound in metric.buckets] + [(INFINITY, float("inf"))]
    return [(name, sum(count for bound, count in counts.items() if bound <= limit)) for name, limit in bounds]
