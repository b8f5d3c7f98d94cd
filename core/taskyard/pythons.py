"""How Taskyard's Python processes find modules: never in the current folder, where a ``queue.py`` would be everybody's ``queue``."""

from __future__ import annotations

import sys


def python(*arguments: str, executable: str = sys.executable) -> list[str]:
    """The command of a Python process that imports nothing from the current folder (``-P``).

    An option, and not PYTHONSAFEPATH: programs that handlers start inherit the environment, and may import what lies beside them.
    """
    return [executable, "-P", *arguments]


def leave_out_current_folder() -> None:
    """Take back the entry that ``python -m`` puts in front of the path. Where PYTHONPATH names the folder, it has an entry of its own."""
    if not sys.flags.safe_path:
        del sys.path[0]


def is_run_as(package: str) -> bool:
    """Is Python about to run this package, for ``python -m``?"""
    after = sys.orig_argv[1 + sys.orig_argv.index("-m") :] if sys.argv[:1] == ["-m"] and "-m" in sys.orig_argv else []
    return after[:1] == [package]
