"""`taskyard up --reload`: which files are watched, and what happens when they change.

What was saved is tried first, in a process of its own: the roles are only stopped for code and settings that they can start with.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sysconfig
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import importlib_metadata

from taskyard.errors import TaskyardError
from taskyard.plugins import GROUP
from taskyard.settings import PluginSettings
from taskyard.up.output import Output
from taskyard.up.preflight import Preflight

#: Restarts the roles, and comes back when they are ready.
Renew = Callable[[], Awaitable[None]]
#: Tries the code and the settings as they are now.
Try = Callable[[], Awaitable[Preflight]]
#: When files were last written, in nanoseconds.
Stamps = dict[Path, int]
Changed = Callable[[set[Path]], None]


@dataclass(frozen=True, slots=True)
class Sources:
    """Packages (folders) and single modules (files) of plugins that somebody may be working on, and the files of the settings."""

    packages: tuple[Path, ...]
    modules: tuple[Path, ...]
    settings: tuple[Path, ...] = ()

    def has(self, path: Path) -> bool:
        """Is this file one of them, or in one of them? What Python and editors put beside the sources is not."""
        if path in self.settings:
            return True
        if path.name.startswith(".") or path.name.endswith(("~", ".swp", ".pyc")) or "__pycache__" in path.parts:
            return False
        return path in self.modules or any(path.is_relative_to(folder) for folder in self.packages)

    def stamps(self) -> Stamps:
        """When each of these files was last written."""
        inside = (path for folder in self.packages for path in folder.rglob("*") if self.has(path))
        found: Stamps = {}
        for path in (*inside, *self.modules, *self.settings):
            with suppress(OSError):
                found[path] = path.stat().st_mtime_ns
        return found


def watched_sources(chosen: PluginSettings) -> Sources:
    """The sources of all plugins that are installed from a folder of their own (`pip install -e`), and enabled.

    Raises:
        TaskyardError: watchfiles is not installed, or there is nothing to watch.
    """
    if importlib.util.find_spec("watchfiles") is None:
        raise TaskyardError("--reload needs the extra 'embedded': pip install 'taskyard[embedded]'")
    modules = {
        entry.module.partition(".")[0]
        for entry in importlib_metadata.entry_points(group=GROUP)
        if entry.name not in chosen.disabled and (chosen.only is None or entry.name in chosen.only)
    }
    # Their top-level modules are looked up and not imported.
    origins = [Path(spec.origin).resolve() for module in sorted(modules) if (spec := importlib.util.find_spec(module)) and spec.origin]
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}
    own = [origin for origin in origins if not any(origin.is_relative_to(folder) for folder in installed)]
    if not own:
        raise TaskyardError("--reload has nothing to watch: no plugin is installed from a folder with `pip install -e`.")
    return Sources(
        packages=tuple(origin.parent for origin in own if origin.name == "__init__.py"),
        modules=tuple(origin for origin in own if origin.name != "__init__.py"),
        settings=(Path(os.environ.get("TASKYARD_CONFIG") or "taskyard.toml").resolve(), Path(".env").resolve()),
    )


async def watch(sources: Sources, since: Stamps, try_it: Try, renew: Renew, output: Output) -> None:
    """Renew the roles whenever a source has changed, until cancelled; also if one was written ``since``. A change while they are renewed begins
    that anew.
    """
    output.say(f"restarts the roles when these change: {', '.join(sorted(map(str, [*sources.packages, *sources.modules, *sources.settings])))}")
    renewing: set[asyncio.Task[None]] = set()
    replaced = asyncio.Event()
    known = since
    roles = _Roles(try_it, renew, output)

    def changed(paths: set[Path]) -> None:
        nonlocal known
        known = sources.stamps()
        for older in renewing:
            older.cancel()
        if paths & {*sources.packages}:
            replaced.set()
        names = ", ".join(sorted(path.name for path in paths))
        task = asyncio.create_task(roles.take_in(f"{names} changed"))
        renewing.add(task)
        task.add_done_callback(renewing.discard)

    def started() -> None:
        """A watcher sees what comes from now on. What was saved before, while the roles started, is seen here."""
        if missed := {path for path, _ in known.items() ^ sources.stamps().items()}:
            changed(missed)

    # The folders that they are in, and not themselves: editors put another file in a file's place, and git another folder. Not what is below
    # those: it may be a whole project.
    around = {path.parent for path in (*sources.packages, *sources.modules, *sources.settings) if path.parent.is_dir()}
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_follow_packages(sources, changed, started, replaced))
            group.create_task(_follow(sources, around, changed, started))
    finally:
        for task in renewing:
            task.cancel()


async def _follow_packages(sources: Sources, changed: Changed, started: Callable[[], None], replaced: asyncio.Event) -> None:
    """Follow what is in the packages. One that is removed and made again is another folder, which has to be watched anew."""
    while True:
        replaced.clear()
        await _follow(sources, {folder for folder in sources.packages if folder.is_dir()}, changed, started, until=replaced)
        await replaced.wait()


async def _follow(sources: Sources, folders: set[Path], changed: Changed, started: Callable[[], None], *, until: asyncio.Event | None = None) -> None:
    """Follow what is in these folders; with ``until`` what is below them, too, until that is set."""
    from watchfiles import awatch

    if not folders:
        return
    wanted, begun = (lambda _, path: sources.has(Path(path))), False
    watching = awatch(*folders, watch_filter=wanted, recursive=until is not None, stop_event=until, debounce=400, rust_timeout=500, yield_on_timeout=True)
    async for found in watching:
        if found:
            changed({Path(path) for _, path in found})
        elif not begun:
            started()
        begun = True


class _Roles:
    """The roles that run, and how they get what was saved."""

    def __init__(self, try_it: Try, renew: Renew, output: Output) -> None:
        self._try = try_it
        self._renew = renew
        self._output = output
        # Not while they are restarted: a save that cuts that short is read by roles that start at this moment.
        self._are_up = True

    async def take_in(self, news: str) -> None:
        """Try what was saved, and restart the roles for it if they would start."""
        tried = await self._try()
        for failure in tried.failed:
            _say(failure, self._output)
        if tried.refused is not None:
            end = "so the old code runs on" if self._are_up else "and they were just restarting; they start again once it is mended"
            _say(f"{news}, but no role would start with that, {end}: {tried.refused}", self._output)
            return
        self._output.say(f"{news}; restarting the roles")
        self._are_up = False
        try:
            await self._renew()
        except TaskyardError as error:
            self._output.say(f"the reload failed: {error}")
        else:
            self._are_up = True
            self._output.say("ready again, with the new code" + (", but for the plugins that have failed" if tried.failed else ""))


def _say(text: str, output: Output) -> None:
    for line in text.splitlines():
        output.say(line)
