"""The scrape configuration that operators copy. The alert rules: tests/ops/test_alerts.py."""

from __future__ import annotations

import re
from typing import Any

import yaml

from .markdown import ROOT, blocks

OPERATORS = ROOT / "docs" / "operators.md"


def documents(key: str) -> list[Any]:
    found = [yaml.safe_load(block) for block in blocks(OPERATORS, "yaml")]
    return [document[key] for document in found if key in document]


def test_the_scrape_configuration_has_what_prometheus_asks_for() -> None:
    [[job]] = documents("scrape_configs")
    assert set(job) == {"job_name", "scrape_interval", "authorization", "static_configs"}, "the path /metrics is Prometheus' default"
    assert set(job["authorization"]) == {"credentials_file"}, "a key in the configuration itself would be in everybody's backups; the type is Bearer by default"
    assert all(re.fullmatch(r"[\w.-]+:\d+", target) for config in job["static_configs"] for target in config["targets"])
