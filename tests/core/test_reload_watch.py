"""What `taskyard up --reload` notices, and what it does when the new code can't be taken: without any role."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taskyard.up.output import Output
from taskyard.up.preflight import Preflight, fly
from taskyard.up.reload import Sources, Stamps, watch

PATIENCE = 90.0


class Watched:
    """A watch whose roles are counted, and which finds what it is told to find."""

    def __init__(self, folder: Path) -> None:
        self.package = folder / "words"
        self.package.mkdir()
        self.module = self.package / "__init__.py"
        self.module.write_text("")
        self.sources = Sources((self.package,), (), (folder / "taskyard.toml",))
        self.said = io.StringIO()
        self.renewed = 0
        self.found = Preflight()
        self.never_ready = False

    async def _try(self) -> Preflight:
        return self.found

    async def _renew(self) -> None:
        self.renewed += 1
        if self.never_ready:
            await asyncio.Event().wait()

    async def during(self, steps: Callable[[], object], since: Stamps | None = None) -> None:
        """Watch while these steps are taken, in a thread."""
        stamps = self.sources.stamps() if since is None else since
        watching = asyncio.create_task(watch(self.sources, stamps, self._try, self._renew, Output(self.said, width=2)))
        try:
            await asyncio.to_thread(steps)
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    def until(self, look: Callable[[], bool], do: Callable[[], object] = lambda: None) -> None:
        """Wait, and do something again and again meanwhile: a watcher may not have begun."""
        ends = time.monotonic() + PATIENCE
        while not look():
            assert time.monotonic() < ends, self.said.getvalue()
            do()
            time.sleep(0.6)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_what_was_saved_before_the_watch_began_is_seen(watched: Watched) -> None:
    since = watched.sources.stamps()
    os.utime(watched.module, (1, 1))
    asyncio.run(watched.during(lambda: watched.until(lambda: watched.renewed == 1), since))
    assert "__init__.py changed; restarting the roles" in watched.said.getvalue()


def test_a_package_that_was_removed_and_made_again_is_followed_on(watched: Watched) -> None:
    def steps() -> None:
        watched.until(lambda: watched.renewed > 0, lambda: watched.module.write_text("A = 1"))
        shutil.rmtree(watched.package)
        before = watched.renewed
        watched.until(lambda: watched.renewed > before)
        watched.package.mkdir()
        before = watched.renewed
        watched.until(lambda: "helper.py changed" in watched.said.getvalue(), lambda: (watched.package / "helper.py").write_text("A = 2"))

    asyncio.run(watched.during(steps))


def test_settings_are_watched_and_a_refusal_leaves_the_roles_alone(watched: Watched) -> None:
    watched.found = Preflight("taskyard.toml: not valid TOML", ("words has failed: KeyError: 'x', at words.py:1\nTraceback ...",))

    def steps() -> None:
        watched.until(lambda: "runs on" in watched.said.getvalue(), lambda: (watched.package.parent / "taskyard.toml").write_text("["))

    asyncio.run(watched.during(steps))
    assert watched.renewed == 0
    lines = watched.said.getvalue().splitlines()
    assert "up | taskyard.toml changed, but no role would start with that, so the old code runs on: taskyard.toml: not valid TOML" in lines
    assert "up | Traceback ..." in lines


def test_a_bad_save_while_the_roles_restart_does_not_claim_that_the_old_code_runs(watched: Watched) -> None:
    watched.never_ready = True

    def steps() -> None:
        watched.until(lambda: watched.renewed > 0, lambda: watched.module.write_text("A = 1"))
        watched.found = Preflight("Two plugins claim one type")
        watched.until(lambda: "one type" in watched.said.getvalue(), lambda: watched.module.write_text("A = 2"))

    asyncio.run(watched.during(steps))
    assert "they start again once it is mended: Two plugins claim one type" in watched.said.getvalue()
    assert "runs on" not in watched.said.getvalue()


def test_code_that_never_comes_back_is_refused_after_a_time(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text("import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})\ntime.sleep(600)\n")
    info = tmp_path / "hanging-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hanging\nVersion: 1.0\nRequires-Dist: taskyard>=0.1\n")
    (info / "entry_points.txt").write_text("[taskyard.plugins]\nhanging = hanging\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TASKYARD_PLUGINS__ONLY": '["hanging"]', "DATABASE_URL": "postgresql://h/d"}
    found = asyncio.run(fly("127.0.0.1", 0, environment | {"CELERY_BROKER_URL": "memory://"}, patience=5))
    assert found.refused == "It was not loaded within 5 s."
