"""Would the roles start with the code and the settings as they are now? Tried in a process of its own, before any role is stopped for them.

Run as ``python -m taskyard.up.preflight HOST PORT``. The answer is JSON on the last line: a plugin may print what it likes before.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from taskyard import logs
from taskyard.children import dying_with_us
from taskyard.cli.output import keep_plugins_quiet
from taskyard.errors import TaskyardError
from taskyard.plugins import Registry, load_plugins_for
from taskyard.pythons import python
from taskyard.settings import Settings, load_settings


@dataclass(frozen=True, slots=True)
class Preflight:
    """``refused`` says why no role would start, None if they would; ``failed`` tells of each plugin that would be marked as failed."""

    refused: str | None = None
    failed: tuple[str, ...] = ()


async def fly(host: str, port: int, environment: Mapping[str, str], patience: float) -> Preflight:
    """Load everything as a role would, within ``patience`` seconds."""
    process = await asyncio.create_subprocess_exec(
        *dying_with_us(python("-m", __name__, host, str(port))),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(patience):
            said, errors = await process.communicate()
    except TimeoutError:
        return Preflight(f"It was not loaded within {patience:g} s.")
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return _read(said, errors, process.returncode)


def _read(said: bytes, errors: bytes, status: int | None) -> Preflight:
    try:
        told = json.loads(said.decode(errors="replace").rpartition("\n")[2])
        return Preflight(told["refused"], tuple(told["failed"]))
    except (ValueError, KeyError, TypeError):
        # A plugin has ended the process, perhaps by os._exit.
        last = errors.decode(errors="replace").strip()[-2000:]
        return Preflight(f"The process that loaded it ended with status {status}." + (f" It said:\n{last}" if last else ""))


def main() -> None:
    """Load the settings and the plugins, and tell what came of it."""
    keep_plugins_quiet()
    host, port = sys.argv[1:]
    refused, failed = None, []
    try:
        settings = load_settings(api={"host": host, "port": int(port)})
        _check_urls(settings)
        failed = _failures(load_plugins_for(settings))
    except TaskyardError as error:
        refused = logs.clean(str(error))
    sys.stdout.write("\n" + json.dumps({"refused": refused, "failed": failed}))


def _check_urls(settings: Settings) -> None:
    from taskyard.database import postgres_url
    from taskyard.dispatch.app import broker_url

    postgres_url(settings.database)
    broker_url(settings.broker)


def _failures(registry: Registry) -> list[str]:
    failed = [plugin for plugin in registry.plugins if plugin.state == "failed"]
    return ["\n".join(filter(None, [f"{plugin.name} has failed: {plugin.failure}", plugin.traceback])) for plugin in failed]


if __name__ == "__main__":
    main()
