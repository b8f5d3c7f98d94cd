"""What a plugin's import does to the process of all: threads that it starts, and what it changes of logging.

A worker's children are forks of a process that has imported every plugin, and a fork has none of its parent's threads. A pool that was opened at
import hangs there for ever.
"""

from __future__ import annotations

import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import structlog

from taskyard.log_setup import LogSetup

log = structlog.get_logger(__name__)

#: What follows from a thread that is started at import, and what to do.
DEAD_THREADS = "it is dead in the processes that run handlers, and what uses it hangs; start it in taskyard_lifespan, or when it is first used"

_STANDARD_LIBRARY = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib")})
_INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("purelib", "platlib")})


@contextmanager
def import_watched(plugin: str, module: str, threads: list[str]) -> Iterator[None]:
    """While a plugin is loaded: adds to ``threads`` a sentence about each thread that it starts and leaves running, and puts logging back as it was."""
    logging, started, start = LogSetup(), list[tuple[threading.Thread, str]](), threading.Thread.start

    def noted(thread: threading.Thread, *arguments: Any) -> None:
        started.append((thread, _place(sys._getframe(1), module.partition(".")[0])))
        start(thread, *arguments)

    threading.Thread.start = noted  # type: ignore[method-assign,assignment]  # there is no other way to learn who starts one
    try:
        yield
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]  # as above
        threads += [f"its import starts the thread {thread.name!r} at {place}" for thread, place in started if thread.is_alive()]
        if changed := logging.put_back():
            log.warning("plugin.changed_logging", plugin=plugin, what=changed, consequence="logging is as it was: it is one for all plugins")


def _place(frame: FrameType | None, package: str) -> str:
    """The line of the plugin that led here, or else of the library that it uses."""
    place = ""
    while frame is not None:
        file = frame.f_code.co_filename
        here = f"{file}:{frame.f_lineno}"
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] == package:
            return here
        if not place and not file.startswith("<") and (file.startswith(_INSTALLED) or not file.startswith(_STANDARD_LIBRARY)):
            place = here
        frame = frame.f_back
    return place or "an unknown place"
