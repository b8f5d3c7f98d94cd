"""`taskyard doctor`: everything that an operator would look at first, asked at once. Each finding that is wrong says what to do.

Every check works alone: what is missing for it makes it a finding, and not an error of the others. It changes nothing: what it writes is rolled
back, and the one broker queue that it may declare is its own and gone at the end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from taskyard.database_errors import driver_words

State = Literal["ok", "warn", "fail"]
#: Seconds that a group of checks may take before the others' findings are shown without it.
GROUP_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the answer. ``advice`` is a sentence: what to do."""

    check: str
    state: State
    detail: str
    advice: str = ""


#: Checks that depend on each other, such as all that need a connection. Answers what it has found.
Group = Callable[[], Iterable[Finding]]


def ok(check: str, detail: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", detail)


def warn(check: str, detail: str, advice: str) -> Finding:
    """It works, and may not be meant so."""
    return Finding(check, "warn", detail, advice)


def fail(check: str, detail: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(check, "fail", detail, advice)


def examine(groups: Sequence[tuple[str, Group]], seconds: float = GROUP_SECONDS) -> list[Finding]:
    """All findings, in the groups' order. They run side by side, and one that hangs is a finding of its own after ``seconds``."""
    found: dict[str, list[Finding]] = {name: [] for name, _ in groups}
    threads = {name: threading.Thread(target=_run, args=(name, group, found[name]), daemon=True) for name, group in groups}
    for thread in threads.values():
        thread.start()
    until = time.monotonic() + seconds
    for name, thread in threads.items():
        thread.join(max(0.1, until - time.monotonic()))
        if thread.is_alive():
            found[name] = [*found[name], fail(name, "no answer in time", "Something between here and there drops packets, or hangs: look at the network.")]
    return [finding for name, _ in groups for finding in found[name]]


def _run(name: str, group: Group, found: list[Finding]) -> None:
    try:
        for finding in group():
            found.append(finding)  # One at a time: what is known is shown if the next one hangs.
    except Exception as error:
        found.append(fail(name, f"{type(error).__name__}: {driver_words(error)}", "This check met something unforeseen: please report it."))
