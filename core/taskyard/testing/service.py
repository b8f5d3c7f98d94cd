"""A whole Taskyard for tests: `taskyard up` on a free port, with a database and a broker of its own, spoken to over REST."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from taskyard import pythons
from taskyard.children import dying_with_us
from taskyard.errors import TaskyardError
from taskyard.payloads import payload_json

#: What a Taskyard for tests must not read: it would work on the database that the developer's shell is set up for.
_READ_BY_TASKYARD = ("TASKYARD_", "DATABASE_URL", "CELERY_", "POSTGRES_")
#: Seconds that one request waits at most for a task's end; the service's own limit is 60.
_LONGEST_WAIT = 30.0
_LOOK_EVERY = 0.05
_STOP_TIMEOUT = 60.0


class NotStarted(TaskyardError):
    """The Taskyard for tests did not start."""


class CallRefused(TaskyardError):
    """The service answered with an error: ``status`` is HTTP's, ``problem`` the problem document."""

    def __init__(self, status: int, problem: Any) -> None:
        self.status = status
        self.problem = problem
        told = problem if isinstance(problem, dict) else {}
        lines = [f"{status} {told.get('title', '')}: {told.get('detail') or problem}"]
        lines += [f"  {error.get('pointer')}: {error.get('detail')}" for error in told.get("errors") or ()]
        super().__init__("\n".join(lines))


class RunningTaskyard:
    """A service that answers at ``url``, for tests. Tasks and answers are the REST API's JSON."""

    def __init__(self, url: str, log: Path | None = None) -> None:
        self.url = url
        self._log = log
        self._client = httpx2.Client(base_url=f"{url}/api/v1/", timeout=_LONGEST_WAIT + 30, trust_env=False)

    def call(self, method: str, path: str, body: Any = None, *, params: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None) -> Any:
        """The JSON that a call answers; ``path`` is relative to /api/v1.

        Raises:
            CallRefused: the answer is an error.
        """
        answer = self._client.request(method, path.lstrip("/"), json=body, params=params, headers=headers)
        if not answer.is_success:
            raise CallRefused(answer.status_code, answer.json() if "json" in answer.headers.get("content-type", "") else answer.text)
        return answer.json()

    def submit(self, type: str, payload: Any = None, **options: Any) -> dict[str, Any]:
        """Submit a task, and get it as it was accepted. ``options`` are those of ``POST /tasks``: queue, delay, tags, ...

        Raises:
            CallRefused: the payload does not fit (422), or there is no such type.
        """
        fits = {} if payload is None else payload_json(payload)
        accepted: dict[str, Any] = self.call("POST", "tasks", {"type": type, "payload": fits, **options})
        return accepted

    def task(self, id: str) -> dict[str, Any]:
        """A task as it stands."""
        found: dict[str, Any] = self.call("GET", f"tasks/{id}")
        return found

    def wait(self, task: str | Mapping[str, Any], timeout: float = 60.0) -> dict[str, Any]:
        """Wait until a task (or the task with this id) has ended; ``timeout`` is in seconds.

        Raises:
            TimeoutError: it has not; tells how it stands.
        """
        id_ = task if isinstance(task, str) else task["id"]
        ends_at = time.monotonic() + timeout
        while True:
            seconds = max(0.0, min(_LONGEST_WAIT, ends_at - time.monotonic()))
            found: dict[str, Any] = self.call("GET", f"tasks/{id_}", headers={"Prefer": f"wait={int(seconds)}"})
            if found["finished_at"]:
                return found
            if time.monotonic() >= ends_at:
                raise TimeoutError(f"Task {id_} is {found['status']!r} after {timeout:g} s; its error: {found['error']}\n{self.log(20)}")
            time.sleep(_LOOK_EVERY)

    def run(self, type: str, payload: Any = None, *, wait: float = 60.0, **options: Any) -> dict[str, Any]:
        """Submit a task and wait up to ``wait`` seconds for its end."""
        return self.wait(self.submit(type, payload, **options), wait)

    def events(self, task: str | Mapping[str, Any]) -> list[dict[str, Any]]:
        """A task's events, oldest first (the first 200)."""
        id_ = task if isinstance(task, str) else task["id"]
        found: list[dict[str, Any]] = self.call("GET", f"tasks/{id_}/events", params={"limit": 200})["items"]
        return found

    def log(self, lines: int | None = None) -> str:
        """What the service has written: the last ``lines``, or all."""
        written = self._log.read_text(errors="replace").splitlines() if self._log else []
        return "\n".join(written if lines is None else written[-lines:])

    def close(self) -> None:
        """Close the connections to it."""
        self._client.close()


@contextmanager
def running_taskyard(
    *, toml: str = "", environment: Mapping[str, str] | None = None, timeout: float = 120.0, python: str = sys.executable
) -> Iterator[RunningTaskyard]:
    """Run `taskyard up` in a temporary folder until the block ends, with every plugin that is installed.

    ``toml`` becomes its ``taskyard.toml``. Of the environment it gets everything but Taskyard's own settings, and
    ``environment`` over it. It needs the extras ``api``, ``worker`` and ``embedded``, in the Python that ``python`` names.
    ``timeout`` (seconds) bounds its start.

    Raises:
        NotStarted: with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="ty-test-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        (folder / "taskyard.toml").write_text(toml, encoding="utf-8")
        process = _start(folder, python, environment or {})
        try:
            running = RunningTaskyard(_until_ready(process, folder, timeout), folder / "log")
            try:
                yield running
            finally:
                running.close()
        finally:
            _stop(process)


def _start(folder: Path, python: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_READ_BY_TASKYARD)}
    if inherited.get("PYTHONPATH"):
        # It runs in another folder: relative entries would lead elsewhere.
        inherited["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in inherited["PYTHONPATH"].split(os.pathsep))
    command = pythons.python("-m", "taskyard", "up", "--port", "0", "--data-dir", str(folder / "data"), executable=python)
    with (folder / "said").open("wb") as said, (folder / "log").open("wb") as log:
        return subprocess.Popen(  # noqa: S603  # our own command, and no shell
            dying_with_us(command), cwd=folder, env={**inherited, **environment}, stdin=subprocess.DEVNULL, stdout=said, stderr=log
        )


def _until_ready(process: subprocess.Popen[bytes], folder: Path, timeout: float) -> str:
    """The address, once all parts are ready."""
    ends_at = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < ends_at:
        lines = [line.split() for line in (folder / "said").read_text(errors="replace").splitlines()]
        if ["Stop", "Ctrl-C"] in lines:
            return next(words[1] for words in lines if words[:1] == ["API"]).removesuffix("/api/v1")
        time.sleep(_LOOK_EVERY)
    how = f"was not ready after {timeout:g} s" if process.poll() is None else f"ended with status {process.returncode}"
    raise NotStarted(f"`taskyard up` {how}. The last it said:\n{(folder / 'log').read_text(errors='replace')[-4000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
