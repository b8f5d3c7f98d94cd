"""The task ``process.run``: run a command that the operator allows, and keep what it printed.

There is no shell anywhere: a command is a program's path and a list of arguments. Off until a command is configured.
"""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from taskyard import Context, Handler, Retry, RetryLater, TaskFailed, handler, hookimpl
from taskyard_process.running import Finished, run_command

MAX_TIMEOUT = 24 * 3600.0
# EX_TEMPFAIL of sysexits.h: the program itself asks to be tried again.
EX_TEMPFAIL = 75
BASE_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}

Argument = Annotated[str, StringConstraints(max_length=32_768, pattern=r"^[^\x00]*$")]
CommandName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Command(BaseModel):
    """One command that tasks may run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path = Field(description="The program, as an absolute path.")
    args: tuple[Argument, ...] = Field((), description="Arguments that always come first.")
    env: dict[VariableName, Argument] = Field(default_factory=dict, description="Environment, besides PATH and LANG. Nothing else is passed on.")
    cwd: Path = Field(Path("/"), description="Folder to run in, as an absolute path.")
    timeout: float = Field(3600.0, gt=0, le=MAX_TIMEOUT, description="Seconds that a run may take. A task's own timeout may end it sooner.")
    max_args: int = Field(100, ge=0, le=10_000, description="Arguments that a task may add; 0 for none.")
    arg_pattern: str | None = Field(None, description="Regular expression that the whole of each added argument must match. Unset: any.")
    retry_exit_codes: tuple[int, ...] = Field((EX_TEMPFAIL,), description="Exit codes that mean: try again later.")

    @field_validator("path", "cwd")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        if not path.is_absolute():
            raise ValueError("expected an absolute path: there is no search along PATH")
        return path

    @field_validator("arg_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern

    def line(self, added: Sequence[str]) -> list[str]:
        """The program and its arguments.

        Raises:
            TaskFailed: this command does not take these arguments.
        """
        if len(added) > self.max_args:
            raise TaskFailed(f"expected at most {self.max_args} arguments, got {len(added)}", code="arguments-refused")
        for number, argument in enumerate(added):
            if self.arg_pattern is not None and not re.fullmatch(self.arg_pattern, argument):
                raise TaskFailed(f"args[{number}] does not match {self.arg_pattern!r}", code="arguments-refused")
        return [str(self.path), *self.args, *added]


class Config(BaseModel):
    """The section ``[plugins.process]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    commands: dict[CommandName, Command] = Field(default_factory=dict, description="What tasks may run, by name. Empty: process.run does not exist.")
    max_output_bytes: int = Field(65_536, ge=0, le=64 * 1024 * 1024, description="Bytes that are kept of stdout and of stderr each.")

    def command(self, name: str) -> Command:
        """The command with this name.

        Raises:
            TaskFailed: the operator allows no such command.
        """
        if name in self.commands:
            return self.commands[name]
        near = difflib.get_close_matches(name, self.commands, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TaskFailed(f"No command {name!r} is configured in [plugins.process.commands].{hint}", code="unknown-command")


class Run(BaseModel):
    """Which command to run."""

    model_config = ConfigDict(extra="forbid")

    command: CommandName = Field(description="Name of a configured command.")
    args: list[Argument] = Field(default_factory=list, max_length=10_000, description="Arguments, after the configured ones. No shell reads them.")
    stdin: str | None = Field(None, description="Text for the program's standard input. Unset: nothing to read.")


class Ran(BaseModel):
    """How the program ended, and what it printed."""

    exit_code: int
    stdout: str
    stderr: str
    stdout_truncated: bool = Field(description="There was more on stdout than is kept.")
    stderr_truncated: bool
    duration: float = Field(description="Seconds.")


@handler("process.run", retry=Retry(max_attempts=3), timeout=MAX_TIMEOUT + 60)
async def run(payload: Run, ctx: Context) -> Ran:
    """Run a command that the operator allows."""
    config = ctx.config or Config()
    command = config.command(payload.command)
    env = {**BASE_ENV, "TASKYARD_TASK_ID": str(ctx.task_id), "TASKYARD_ATTEMPT": str(ctx.attempt), **command.env}
    try:
        finished = await run_command(
            command.line(payload.args),
            env=env,
            cwd=command.cwd,
            stdin=None if payload.stdin is None else payload.stdin.encode(),
            limit=config.max_output_bytes,
            seconds=command.timeout,
        )
    except OSError as error:
        raise TaskFailed(f"{payload.command} can't be started: {error}", code="not-started") from error
    return _judge(payload.command, command, finished)


def _judge(name: str, command: Command, finished: Finished) -> Ran:
    """0 is success, the codes that ask for it mean another try, everything else failed for good."""
    if finished.exit_code == 0:
        return Ran(
            exit_code=0,
            stdout=finished.stdout,
            stderr=finished.stderr,
            stdout_truncated=finished.stdout_truncated,
            stderr_truncated=finished.stderr_truncated,
            duration=finished.duration,
        )
    output = {"stdout": finished.stdout[-4000:], "stderr": finished.stderr[-4000:]}
    if finished.exit_code is None:
        raise TaskFailed(f"{name} took longer than {command.timeout:g} s and was ended", code="timeout", **output)
    if finished.exit_code in command.retry_exit_codes:
        raise RetryLater(f"{name} ended with exit code {finished.exit_code}: {finished.stderr[-1000:]}")
    raise TaskFailed(f"{name} ended with {_told(finished.exit_code)}", code="exit-code", exit_code=finished.exit_code, **output)


def _told(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"signal {signal.Signals(-exit_code).name}"
    except ValueError:  # a real-time signal has no name
        return f"signal {-exit_code}"


@hookimpl
def taskyard_config() -> type[BaseModel]:
    return Config


@hookimpl
def taskyard_exposes(config: Config) -> str | None:
    return f"process.run runs {', '.join(sorted(config.commands))} with the worker's rights" if config.commands else None


@hookimpl
def taskyard_handlers(config: Config) -> Sequence[Handler[Any, Any]]:
    return [run] if config.commands else []
