"""deploy/alerts.yml: rules that Prometheus takes, about series that Taskyard exports from the start."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from taskyard.gauges import GAUGES
from taskyard.metrics import SHARED, Tally
from taskyard.plugins import load_plugins
from taskyard_api.measures import OWN
from tests.docs.markdown import ROOT, rows

ALERTS = ROOT / "deploy" / "alerts.yml"
#: Words of PromQL that are no metrics and no labels.
PROMQL = {"min", "max", "without", "and", "instance", "or", "unless", "increase", "max_over_time", "absent", "job", "up"}
METRICS = {metric.name: metric for metric in (*SHARED, *GAUGES, *OWN)}
PROMTOOL = shutil.which("promtool")


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    return list(group["rules"])


def selectors(expr: str) -> list[tuple[str, dict[str, str]]]:
    """The metrics of a rule, each with the labels' values that it asks for. A histogram goes by its own name."""
    found = re.findall(r"\b((?:taskyard_\w+|up))\b(?:\{([^}]*)\})?", expr)
    return [(name.removesuffix("_count"), dict(re.findall(r'(\w+)="([^"]*)"', inside))) for name, inside in found]


def test_every_rule_is_in_the_operators_table() -> None:
    assert [f"`{rule['alert']}`" for rule in rules()] == [row[0] for row in rows(ROOT / "docs" / "operators.md", "`deploy/alerts.yml` has alert rules")]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_a_rule_uses_metrics_and_labels_that_are_exported(rule: dict[str, Any]) -> None:
    used = [name for name, _ in selectors(rule["expr"]) if name != "up"]
    assert used or "up{" in rule["expr"]
    assert set(used) <= set(METRICS)
    labels = {label for name in used for label in METRICS[name].labels}
    assert {label for name, asked in selectors(rule["expr"]) if name != "up" for label in asked} <= labels
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= labels
    words = set(re.findall(r"[a-z_]\w*", re.sub(r'"[^"]*"|\[\w+\]|\{[^}]*\}|taskyard_\w+', "", rule["expr"])))
    assert words <= PROMQL | labels


@pytest.mark.parametrize("rule", [rule for rule in rules() if "increase(" in rule["expr"]], ids=lambda rule: str(rule["alert"]))
def test_what_a_rule_sees_increase_is_exported_as_zero_before_it_happens(rule: dict[str, Any]) -> None:
    registry = load_plugins()
    zeros = Tally.of(registry).zeros()
    for name, asked in selectors(rule["expr"]):
        metric = METRICS[name]
        if metric in OWN or not metric.labels:
            continue  # Seen by a scrape: tests/api/test_metrics.py.
        born = [dict(zip(metric.labels, labels, strict=True)) for series, labels in zeros if series == name]
        assert {each.get("notifier") for each in born if asked.items() <= each.items()} == set(registry.notifiers)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian's package prometheus) is not installed here")
@pytest.mark.parametrize("command", [("check", "rules", "deploy/alerts.yml"), ("test", "rules", "tests/ops/alerts_test.yml")], ids=lambda c: c[0])
def test_prometheus_takes_the_rules_and_they_fire_when_they_should(command: tuple[str, ...]) -> None:
    done = subprocess.run([str(PROMTOOL), *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
