"""The real roles as processes, started again whenever one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from taskyard.children import dying_with_us
from taskyard.failpoints import VARIABLE
from tests.ground import Ground, free_port

from .plan import Plan
from .plugin.chaos_mutations import NOT_FOUND
from .receiver import SECRET
from .records import Records

PLUGIN = Path(__file__).parent / "plugin"
#: Seconds within which a failpoint is reached, or a stopped worker is given up.
REACHED_WITHIN = 150.0
CONFIGURATION = """
[[routes]]
name = "ends"
notifier = "webhook"
events = ["task.succeeded", "task.failed", "task.cancelled", "task.expired"]
tags = ["told"]
[routes.options]
url = "{url}"
secret = "{secret}"
[plugins]
only = ["chaos", "webhook"]
[plugins.webhook]
allow_private_networks = true
"""


class Roles:
    """Two services, two dispatchers, two workers. The second of each reaches PostgreSQL and the broker over wires that can be cut."""

    def __init__(self, plan: Plan, ground: Ground, database_url: str, folder: Path, records: Records, hook: str) -> None:
        self.run_id = uuid.uuid4().hex
        self.prefix = f"c{self.run_id[:10]}"
        self.queues = [f"{self.prefix}.{name}" for name in ("default.sync", "default.async", "io.async", "deliveries")]
        """Every queue of the broker that the tasks and notifications of the run travel through."""
        self.names = plan.roles
        self.ports = {role: free_port() for role in plan.roles if role.startswith("api")}
        self.ended = dict.fromkeys(plan.roles, 0)
        self.broken = ""
        self._folder = folder
        (folder / "taskyard.toml").write_text(CONFIGURATION.format(url=hook, secret=SECRET))
        self._env = _environment(plan, folder, records, self.run_id, self.prefix)
        near = {"DATABASE_URL": database_url, "CELERY_BROKER_URL": ground.broker.url}
        far = {"DATABASE_URL": ground.to_postgres.url_of(database_url), "CELERY_BROKER_URL": ground.to_broker.url_of(ground.broker.url)}
        self._urls = {role: far if role.endswith("-2") else near for role in plan.roles}
        self._slots = {role: {"TASKYARD_WORKER__ASYNC_SLOTS": str(slots)} for role, slots in plan.slots.items()}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._began_at: dict[str, int] = {}
        self._failpoints: dict[str, Mapping[str, str]] = dict(plan.armed)
        self._armed_at: dict[str, int] = {}
        self._unsaid_until: dict[tuple[str, str, int], int] = {}
        # A role is armed before its next process begins, or after: then that one is killed. Nothing in between.
        self._beginning = threading.Lock()
        self._stopping = threading.Event()
        # One thread starts all: the kernel ends what it started when it ends, so that nothing outlives this process.
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def start(self) -> None:
        """Start them all, and whatever ends from now on."""
        self._keeper.start()

    def _keep(self) -> None:
        while not self._stopping.wait(0.02):
            for role in self.names:
                process = self._processes.get(role)
                if process is None or process.poll() is not None:
                    self._note_end(role, process)
                    with self._beginning:
                        self._begin(role)
        self._end_all()

    def _note_end(self, role: str, process: subprocess.Popen[bytes] | None) -> None:
        if process is not None:
            self.ended[role] += 1
            if process.returncode == NOT_FOUND:
                self.broken = self.log_tail(role)

    def _begin(self, role: str) -> None:
        kind = role.partition("-")[0]
        command = {
            "api": ["serve", "--port", str(self.ports.get(role, 0))],
            "dispatcher": ["dispatcher"],
            "worker": ["worker", "--name", f"{role}@chaos"],
        }[kind]
        env = self._env | self._urls[role] | self._slots.get(role, {}) | {VARIABLE: ",".join(f"{name}={what}" for name, what in self.armed(role).items())}
        self._began_at[role] = self.log(role).stat().st_size
        with self.log(role).open("ab") as log:
            line = dying_with_us([sys.executable, "-m", "taskyard", *command], signal.SIGKILL)
            self._processes[role] = subprocess.Popen(line, env=env, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _end_all(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def stop(self) -> None:
        """Stop all as an operator would."""
        self._stopping.set()
        self._keeper.join()

    def signal(self, role: str, number: int) -> None:
        """Send a signal to a role's own process."""
        with suppress(ProcessLookupError):
            self._processes[role].send_signal(number)

    def are_up(self) -> bool:
        """Is each role's present process at work?"""
        return len(self._processes) == len(self.names) and all(map(self.is_up, self.names))

    def is_up(self, role: str) -> bool:
        """Is a role's present process at work?"""
        if self._processes[role].poll() is not None:
            return False
        if role in self.ports:
            return _serves(self.ports[role])
        ready = "dispatcher.started" if role.startswith("dispatcher") else "worker.ready"
        return self.said(role, f'"event": "{ready}"', since=self._began_at[role])

    def halted(self, role: str) -> bool:
        """Is it stopped by SIGSTOP?"""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._processes[role].pid).status() == psutil.STATUS_STOPPED
        return False

    def handlers_of(self, worker: str) -> list[psutil.Process]:
        """The processes that run a worker's handlers: the children of its zygote."""
        with suppress(psutil.NoSuchProcess):
            zygotes = psutil.Process(self._processes[worker].pid).children()
            return [child for zygote in zygotes for child in zygote.children()]
        return []

    def arm(self, role: str, failpoints: Mapping[str, str]) -> None:
        """Kill a role, and have it start again with failpoints armed; and once more with the rest of them whenever it ends."""
        with self._beginning:
            self._armed_at[role] = self.log(role).stat().st_size
            self._failpoints[role] = failpoints
            self.signal(role, signal.SIGKILL)

    def disarm(self, role: str) -> None:
        """Arm nothing when it starts again."""
        self._failpoints.pop(role, None)

    def armed(self, role: str) -> dict[str, str]:
        """The failpoints of a role that were not reached yet."""
        since = self._armed_at.get(role, 0)
        return {name: what for name, what in self._failpoints.get(role, {}).items() if not self.said(role, f'"name": "{name}", "action"', since)}

    # --- what they wrote ---

    def log(self, role: str) -> Path:
        """The file of a role's output."""
        path = self._folder / f"{role}.log"
        path.touch()
        return path

    def log_tail(self, role: str) -> str:
        """The last lines of a role."""
        return self.log(role).read_text(errors="replace")[-1500:]

    def said(self, role: str, words: str, since: int = 0) -> bool:
        """Has a role written these words? Each part of a log is read once for them: it is asked often, and logs of long runs are large."""
        wanted = words.encode()
        begin = self._unsaid_until.get((role, words, since), since)
        with self.log(role).open("rb") as file:
            file.seek(begin)
            read = file.read()
        found = read.find(wanted)
        # Found words are found again at once, and what is cut in half at the end is seen whole the next time.
        self._unsaid_until[role, words, since] = begin + (found if found >= 0 else max(0, len(read) - len(wanted)))
        return found >= 0

    def events(self, *names: str) -> Iterator[dict[str, Any]]:
        """The lines of all logs with one of these events."""
        marks = [f'"event": "{name}"' for name in names]
        for role in self.names:
            with self.log(role).open(errors="replace") as file:
                for line in file:
                    if any(mark in line for mark in marks):
                        with suppress(ValueError):
                            yield json.loads(line) | {"role": role}

    def orphans(self) -> list[psutil.Process]:
        """Processes of this run that are alive: after :meth:`stop` there must be none."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("CHAOS_RUN") == self.run_id
        return False


def _environment(plan: Plan, folder: Path, records: Records, run_id: str, prefix: str) -> dict[str, str]:
    """What all roles share. Times are short, so that a run meets each limit many times."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TASKYARD_", "CELERY_", "POSTGRES_", "DATABASE_", "CHAOS_"))}
    settings = {
        "BROKER__PREFIX": prefix,
        "BROKER__CONFIRM_TIMEOUT": 2,
        "DATABASE__POOL_SIZE": 5,
        "DISPATCH__TICK": plan.tick,
        "DISPATCH__SWEEP_AFTER": plan.sweep_after,
        "DISPATCH__WORKER_SILENCE": plan.silence,
        "DISPATCH__PARK_DELAY": 1,
        "WORKER__HEARTBEAT": plan.silence / 6,
        "WORKER__PROCESSES": 2,
        "WORKER__STOP_GRACE": 2,
        # Nobody looks at readiness before each request.
        "API__DRAIN_DELAY": 0,
        "WORKER__CANCEL_GRACE": 2,
        "WORKER__KILL_GRACE": 0.5,
        "DELIVERIES__TIMEOUT": 1,
        "DELIVERIES__BASE": 0.2,
        "DELIVERIES__FACTOR": 1.5,
        "DELIVERIES__MAX_DELAY": 2,
        "DELIVERIES__MAX_ATTEMPTS": 50,
        "LOG__FORMAT": "json",
    }
    return kept | {
        **{f"TASKYARD_{name}": str(value) for name, value in settings.items()},
        "TASKYARD_CONFIG": str(folder / "taskyard.toml"),
        "PYTHONPATH": str(PLUGIN),
        "CHAOS_HANDLERS": str(records.handlers.path),
        "CHAOS_GATE": str(records.gate),
        "CHAOS_MUTATE": plan.mutate,
        "CHAOS_RUN": run_id,
    }


def _serves(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def reached(condition: Callable[[], Any], seconds: float = REACHED_WITHIN) -> bool:
    """Does a condition become true within so many seconds?"""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        wait(0.05)
    return True


def wait(seconds: float) -> None:
    """Let time pass: how long a fault lasts is part of the fault."""
    time.sleep(seconds)
