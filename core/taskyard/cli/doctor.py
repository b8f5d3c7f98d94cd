"""`taskyard doctor`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import typer

from taskyard import logs
from taskyard.cli.config import find_problems
from taskyard.cli.database import HERE, RunningDataDir, with_embedded
from taskyard.cli.output import AsJson, console, keep_plugins_quiet, text, write_json, write_table
from taskyard.doctor import Finding, configuration, examine
from taskyard.errors import ConfigurationError
from taskyard.masking import secrets_in
from taskyard.plugins import Registry, load_plugins
from taskyard.settings import Settings, load_settings


def doctor(
    data_dir: RunningDataDir = HERE,
    as_json: AsJson = False,
) -> None:
    """Ask everything at once: settings, database, schema, rights, broker, queues, plugins, roles, clocks. Exit with 1 if something fails.

    It changes nothing, and takes half a minute at most.
    """
    keep_plugins_quiet()
    findings = [_cleaned(finding) for finding in _findings(data_dir)]
    failed = sum(finding.state == "fail" for finding in findings)
    if as_json:
        write_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        _show(findings)
    if failed:
        raise typer.Exit(1)


def _findings(data_dir: Path) -> list[Finding]:
    first = [configuration.check_version()]
    try:
        settings = with_embedded(load_settings(), data_dir)
    except ConfigurationError as error:
        return [*first, *configuration.check_settings(str(error).splitlines())]
    logs.hide(secrets_in(settings))
    # In this thread: importing a plugin has its own time limit.
    first += configuration.check_settings(find_problems(settings))
    registry = _registry(settings)
    first += configuration.check_plugins(registry, settings)
    return first + examine([("database", _database(settings)), ("broker", _broker(settings, registry)), ("web", lambda: configuration.check_web(settings))])


def _registry(settings: Settings) -> Registry:
    chosen = settings.plugins
    try:
        return load_plugins(only=chosen.only, disabled=chosen.disabled, options=chosen.options, import_timeout=chosen.import_timeout)
    except ConfigurationError:
        # Named among the settings' problems.
        return load_plugins(only=())


def _database(settings: Settings) -> Callable[[], Iterator[Finding]]:
    def check() -> Iterator[Finding]:
        from taskyard.doctor.database import check_database  # Here, not above: it needs an extra, whose absence is a finding.

        return check_database(settings)

    return check


def _broker(settings: Settings, registry: Registry) -> Callable[[], Iterator[Finding]]:
    def check() -> Iterator[Finding]:
        from taskyard.doctor.broker import check_broker

        return check_broker(settings, settings.worker.queues or {"default", *(handler.queue for handler in registry.handlers.values())})

    return check


def _cleaned(finding: Finding) -> Finding:
    """Without secrets: drivers and brokers quote what they were given."""
    return Finding(finding.check, finding.state, logs.clean(finding.detail), finding.advice)


def _show(findings: list[Finding]) -> None:
    write_table(("CHECK", "STATE", "FOUND", "WHAT TO DO"), [(f.check, f.state, f.detail, f.advice) for f in findings], fold=("FOUND", "WHAT TO DO"))
    counts = Counter(finding.state for finding in findings)
    console().print(text(f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed"))
