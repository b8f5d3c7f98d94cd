"""`taskyard up --reload`: which files are watched, and what happens when they change."""

from __future__ import annotations

import asyncio
import importlib.util
import sysconfig
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import importlib_metadata

from taskyard.errors import TaskyardError
from taskyard.plugins import GROUP
from taskyard.settings import PluginSettings
from taskyard.up.output import Output

#: Restarts the roles, and comes back when they are ready.
Renew = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Sources:
    """Packages (folders) and single modules (files) of plugins that somebody may be working on."""

    packages: tuple[Path, ...]
    modules: tuple[Path, ...]

    def has(self, path: Path) -> bool:
        """Is this file one of them, or in one of them? What Python and editors put beside the sources is not."""
        if path.name.startswith(".") or path.name.endswith(("~", ".swp", ".pyc")) or "__pycache__" in path.parts:
            return False
        return path in self.modules or any(path.is_relative_to(folder) for folder in self.packages)


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
        packages=tuple(origin.parent for origin in own if origin.name == "__init__.py"), modules=tuple(origin for origin in own if origin.name != "__init__.py")
    )


async def watch(sources: Sources, renew: Renew, output: Output) -> None:
    """Renew the roles whenever a source has changed, until cancelled. A change while they are renewed begins that anew."""
    output.say(f"restarts the roles when these change: {', '.join(sorted(map(str, [*sources.packages, *sources.modules])))}")
    renewing: set[asyncio.Task[None]] = set()

    def changed(paths: set[Path]) -> None:
        for older in renewing:
            older.cancel()
        output.say(f"{', '.join(sorted(path.name for path in paths))} changed; restarting the roles")
        task = asyncio.create_task(_renewed(renew, output))
        renewing.add(task)
        task.add_done_callback(renewing.discard)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_follow(sources, {*sources.packages}, changed, recursive=True))
            # A module's folder, and not the file: editors put another file in its place. Not what is below: it may be a whole project.
            group.create_task(_follow(sources, {module.parent for module in sources.modules}, changed, recursive=False))
    finally:
        for task in renewing:
            task.cancel()


async def _follow(sources: Sources, folders: set[Path], changed: Callable[[set[Path]], None], *, recursive: bool) -> None:
    from watchfiles import awatch

    if folders:
        async for found in awatch(*folders, watch_filter=lambda _, path: sources.has(Path(path)), recursive=recursive, debounce=400):
            changed({Path(path) for _, path in found})


async def _renewed(renew: Renew, output: Output) -> None:
    try:
        await renew()
    except TaskyardError as error:
        output.say(f"the reload failed: {error}")
    else:
        output.say("ready again, with the new code")
