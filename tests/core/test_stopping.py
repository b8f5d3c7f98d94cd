"""A stop that takes longer than its budget is ended, and says what it waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from taskyard.settings import ApiSettings, BrokerSettings, Settings, WorkerSettings
from taskyard.stopping import OVERDUE, budget

STOPS = """
import signal, threading, time
from taskyard.stopping import Step, StopGuard

released = threading.Event()
guard = StopGuard("worker", {budget}, Step("the broker", 0.2, released.set))
signal.signal(signal.SIGTERM, lambda *_: guard.begin())
print("ready", flush=True)


def wait_for_the_broker():
    released.wait()


wait_for_the_broker()
guard.enter(Step("running tasks"))
print("the broker is given up", flush=True)
{then}
"""


def _stopped(budget: float, then: str) -> tuple[int, str]:
    """Exit status and output of a process that is told to stop, waits for a broker, and does ``then``."""
    command = [sys.executable, "-c", STOPS.format(budget=budget, then=then)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    return process.returncode, said


def test_a_step_that_takes_too_long_is_made_to_end_and_the_stop_goes_on() -> None:
    assert _stopped(60.0, "raise SystemExit(0)") == (0, "the broker is given up\n")


def test_a_stop_that_is_over_its_budget_ends_with_a_line_that_says_what_it_waited_for() -> None:
    status, said = _stopped(1.0, "time.sleep(600)")
    assert status == OVERDUE
    assert "stop.overdue" in said
    assert "running tasks" in said
    assert "<module>" in said, "the line of code that waits is named"


def test_a_log_that_nobody_reads_holds_no_stop_up() -> None:
    # More than a pipe takes: the main thread waits with the lock of the output, and the guard's own line waits for that.
    command = [sys.executable, "-c", STOPS.format(budget=1.0, then="print('x' * 1_000_000)")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(timeout=60) == OVERDUE
        finally:
            process.kill()


def test_each_roles_budget_is_its_grace_and_a_little() -> None:
    settings = Settings(worker=WorkerSettings(stop_grace=10, kill_grace=1), api=ApiSettings(drain_delay=7), broker=BrokerSettings(confirm_timeout=5))
    assert {role: budget(role, settings) for role in ("web", "dispatcher", "worker")} == {"web": 22, "dispatcher": 15, "worker": 25}
