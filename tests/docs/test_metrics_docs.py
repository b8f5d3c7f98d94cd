"""The scrape configuration and the alert rules that operators copy."""

from __future__ import annotations

import re
from typing import Any

import yaml

from taskyard.gauges import GAUGES
from taskyard.metrics import SHARED
from taskyard_api.measures import OWN

from .markdown import ROOT, blocks

OPERATORS = ROOT / "docs" / "operators.md"
#: Words of PromQL that are no metrics and no labels.
PROMQL = {"min", "max", "without", "instance", "or", "unless", "increase"}
METRICS = {metric.name: metric for metric in (*SHARED, *GAUGES, *OWN)}


def documents(key: str) -> list[Any]:
    found = [yaml.safe_load(block) for block in blocks(OPERATORS, "yaml")]
    return [document[key] for document in found if key in document]


def rules() -> list[dict[str, Any]]:
    [[group]] = documents("groups")
    assert set(group) == {"name", "rules"}
    return list(group["rules"])


def test_the_scrape_configuration_has_what_prometheus_asks_for() -> None:
    [[job]] = documents("scrape_configs")
    assert set(job) == {"job_name", "scrape_interval", "static_configs"}, "the path /metrics is Prometheus' default"
    assert all(re.fullmatch(r"[\w.-]+:\d+", target) for config in job["static_configs"] for target in config["targets"])


def test_there_are_five_alert_rules_each_with_what_prometheus_asks_for() -> None:
    assert len(rules()) == len({rule["alert"] for rule in rules()}) == 5
    for rule in rules():
        assert {"alert", "expr", "labels", "annotations"} <= set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith(".") or rule["annotations"]["summary"].endswith("?")
        assert re.fullmatch(r"\d+[ms]", rule.get("for", "0s"))
        assert rule["expr"].count("(") == rule["expr"].count(")")


def test_alert_rules_use_metrics_and_labels_that_are_there() -> None:
    for rule in rules():
        without_values = re.sub(r'"[^"]*"|\[\w+\]', "", rule["expr"])
        words = set(re.findall(r"[a-z_]\w*", without_values)) - PROMQL
        used = {word for word in words if word.startswith("taskyard_")}
        assert used, rule["alert"]
        assert used <= set(METRICS), rule["alert"]
        labels = {label for name in used for label in METRICS[name].labels}
        assert words - used <= labels, rule["alert"]
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= labels, rule["alert"]
        if "increase(" in rule["expr"]:
            assert {METRICS[name].kind for name in used} == {"counter"}
