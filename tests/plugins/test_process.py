"""The plugin ``process``: only what the operator allows runs, no shell reads it, and nothing of it stays behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from taskyard.handlers import Context
from taskyard.plugins import load_plugins, load_plugins_for
from taskyard.settings import ApiSettings, AuthSettings, PluginSettings, Settings
from taskyard.testing import HandlerRun, run_handler
from taskyard_api.command import warn_if_open
from taskyard_process import Command, Config, Run, run

PYTHON = {"path": sys.executable, "args": ["-I", "-c"]}


def _config(**commands: dict[str, Any]) -> Config:
    return Config.model_validate({"commands": {"python": PYTHON, **commands}, "max_output_bytes": 1000})


def _run(*args: str, command: str = "python", config: Config | None = None, **more: Any) -> HandlerRun:
    return run_handler(run, {"command": command, "args": list(args), **more}, config=config or _config())


def test_a_commands_output_and_exit_are_kept() -> None:
    ran = _run("import sys; print('out', sys.argv[1:]); print('err', file=sys.stderr)", "a b", "$HOME; *")
    assert ran.status == "succeeded"
    assert ran.result["stdout"] == "out ['a b', '$HOME; *']\n"
    assert (ran.result["stderr"], ran.result["exit_code"]) == ("err\n", 0)


@pytest.mark.parametrize(("host", "who"), [("127.0.0.1", "every user of this machine"), ("0.0.0.0", "everybody who reaches this address")])
def test_a_service_without_keys_warns_who_may_run_the_commands(host: str, who: str) -> None:
    allowed = PluginSettings.model_validate({"process": {"commands": {"backup": PYTHON, "ls": {"path": "/bin/ls"}}}})
    open_to_all = Settings(api=ApiSettings(host=host), auth=AuthSettings(mode="none"), plugins=allowed)
    with_keys = open_to_all.model_copy(update={"auth": AuthSettings(mode="keys")})
    without_commands = open_to_all.model_copy(update={"plugins": PluginSettings()})
    with capture_logs() as logged:
        for settings in (open_to_all, with_keys, without_commands):
            warn_if_open(settings, load_plugins_for(settings))
    [warning] = [line for line in logged if line["event"] == "auth.open"]
    assert (warning["plugin"], warning["log_level"]) == ("process", "warning")
    assert warning["means"] == f"{who} may submit tasks, and process.run runs backup, ls with the worker's rights"


def test_stdin_is_given_and_is_empty_otherwise() -> None:
    code = "import sys; print(sys.stdin.read().upper())"
    assert _run(code, stdin="grün").result["stdout"] == "GRÜN\n"
    assert _run(code).result["stdout"] == "\n"


def test_a_program_that_ignores_a_large_stdin_is_fine() -> None:
    assert _run("pass", stdin="x" * 1_000_000).status == "succeeded"


def test_the_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")
    config = _config(env={"path": "/usr/bin/env", "env": {"COLOUR": "blue"}})
    names = {line.partition("=")[0] for line in _run(command="env", config=config).result["stdout"].splitlines()}
    assert names == {"PATH", "LANG", "COLOUR", "TASKYARD_TASK_ID", "TASKYARD_ATTEMPT"}


def test_a_command_runs_in_its_folder(tmp_path: Path) -> None:
    config = _config(where={**PYTHON, "cwd": str(tmp_path)})
    assert _run("import os; print(os.getcwd())", command="where", config=config).result["stdout"].strip() == str(tmp_path)


def test_output_beyond_the_limit_is_drained_and_dropped() -> None:
    ran = _run("import sys; sys.stdout.write('é' * 500_000); sys.stderr.write('b' * 1000)")
    assert ran.result["stdout"] == "é" * 500
    assert (ran.result["stdout_truncated"], ran.result["stderr_truncated"]) == (True, False)


def test_output_that_postgres_can_not_store_is_made_storable() -> None:
    assert _run("import sys; sys.stdout.buffer.write(b'a\\0b\\xff')").result["stdout"] == "a\ufffdb\ufffd"


@pytest.mark.parametrize(("code", "told"), [("raise SystemExit(3)", "exit code 3"), ("import os; os.kill(os.getpid(), 9)", "signal SIGKILL")])
def test_an_exit_other_than_zero_fails_for_good(code: str, told: str) -> None:
    ran = _run(f"import sys; print('why', file=sys.stderr); {code}")
    assert (ran.status, ran.code) == ("failed", "exit-code")
    assert told in str(ran.error)
    assert ran.error.details["stderr"] == "why\n"  # type: ignore[union-attr]  # a TaskFailed, by its code


def test_the_configured_exit_codes_mean_another_try() -> None:
    assert _run("raise SystemExit(75)").status == "scheduled"
    config = _config(flaky={**PYTHON, "retry_exit_codes": [9]})
    assert _run("raise SystemExit(9)", command="flaky", config=config).status == "scheduled"
    assert _run("raise SystemExit(75)", command="flaky", config=config).status == "failed"


def test_a_command_that_is_not_configured_is_refused_and_the_near_one_named() -> None:
    ran = _run(command="pyton")
    assert (ran.status, ran.code) == ("failed", "unknown-command")
    assert "Did you mean 'python'?" in str(ran.error)


def test_arguments_can_be_limited() -> None:
    config = _config(fixed={**PYTHON, "args": ["-c", "pass"], "max_args": 0}, words={"path": "/bin/echo", "arg_pattern": "[a-z]+"})
    assert _run("x", command="fixed", config=config).code == "arguments-refused"
    assert _run("fine", command="words", config=config).status == "succeeded"
    assert _run("--help", command="words", config=config).code == "arguments-refused"
    assert _run("fine\n", command="words", config=config).code == "arguments-refused"


def test_a_program_that_is_not_there_fails_with_its_path() -> None:
    ran = _run(command="gone", config=_config(gone={"path": "/no/such/program"}))
    assert (ran.status, ran.code) == ("failed", "not-started")
    assert "/no/such/program" in str(ran.error)


@pytest.mark.parametrize(
    "wrong", [{"path": "echo"}, {"path": "/bin/echo", "cwd": "here"}, {"path": "/bin/echo", "arg_pattern": "("}, {"path": "/bin/echo", "x": 1}]
)
def test_a_wrong_command_is_refused_when_configured(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Command.model_validate(wrong)


def test_the_plugin_is_off_until_a_command_is_configured() -> None:
    assert "process.run" not in load_plugins(only=["process"]).handlers
    assert "process.run" in load_plugins(only=["process"], options={"process": {"commands": {"python": PYTHON}}}).handlers


# A parent and a child that both ignore SIGTERM and write their ids to the file named by their argument.
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
open(f"{sys.argv[1]}.{os.getpid()}", "w").close()
while True: time.sleep(60)
"""


async def _pids(mark: Path, count: int) -> list[int]:
    while len(found := list(mark.parent.glob(f"{mark.name}.*"))) < count:  # noqa: ASYNC110  # files are all that the other process can show
        await asyncio.sleep(0.01)
    return [int(path.suffix[1:]) for path in found]


def _is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _all_gone(pids: list[int]) -> bool:
    end = time.monotonic() + 10
    while any(_is_running(pid) for pid in pids) and time.monotonic() < end:
        os.sched_yield()
    return not any(_is_running(pid) for pid in pids)


def test_a_cancelled_run_ends_the_whole_group_even_if_it_ignores_sigterm(tmp_path: Path) -> None:
    async def start_and_cancel() -> list[int]:
        mark = tmp_path / "mark"
        payload = Run(command="python", args=[STUBBORN, str(mark)])
        task = asyncio.create_task(run(payload, Context(task_id=uuid4(), type="process.run", config=_config())))
        pids = await _pids(mark, 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pids

    assert _all_gone(asyncio.run(start_and_cancel()))


def test_a_run_past_its_commands_timeout_is_ended_with_its_group(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    ran = _run(STUBBORN, str(mark), command="brief", config=_config(brief={**PYTHON, "timeout": 2.0}))
    assert (ran.status, ran.code) == ("failed", "timeout")
    assert _all_gone(asyncio.run(_pids(mark, 2)))


def test_a_run_whose_worker_is_killed_outright_ends_too(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    worker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from taskyard.testing import run_handler; from taskyard_process import Config, run; import json\n"
            "run_handler(run, json.loads(sys.argv[1]), config=Config.model_validate_json(sys.argv[2]))",
            Run(command="python", args=[STUBBORN, str(mark)]).model_dump_json(),
            _config().model_dump_json(),
        ]
    )
    pids = asyncio.run(_pids(mark, 2))
    worker.kill()
    worker.wait()
    assert _all_gone(pids)


def test_a_command_that_is_no_program_fails_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "text").chmod(0o755)
    ran = _run(command="text", config=_config(text={"path": str(tmp_path / "text")}))
    assert (ran.status, ran.code) == ("failed", "exit-code")
    assert "can't be started" in ran.error.details["stderr"]  # type: ignore[union-attr]  # a TaskFailed, by its code


def test_what_a_command_leaves_in_the_background_ends_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    ran = _run(
        "import os, sys, time\nif os.fork() == 0:\n  open(f'{sys.argv[1]}.{os.getpid()}', 'w').close()\n  time.sleep(600)\n"
        "while not __import__('glob').glob(sys.argv[1] + '.*'): pass",
        str(mark),
    )
    assert ran.status == "succeeded"
    assert _all_gone(asyncio.run(_pids(mark, 1)))


def test_a_child_that_left_the_group_does_not_hold_the_run_up(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    ran = _run(
        "import os, sys, time\nif os.fork() == 0:\n  os.setsid()\n  open(f'{sys.argv[1]}.{os.getpid()}', 'w').close()\n  time.sleep(600)\n"
        "while not __import__('glob').glob(sys.argv[1] + '.*'): pass\nprint('done')",
        str(mark),
    )
    (pid,) = asyncio.run(_pids(mark, 1))
    os.kill(pid, 9)
    assert ran.result["stdout"] == "done\n"
