"""Stands between the worker and a program, so that the program dies with the worker even if the worker is killed outright.

Run as ``python -I -S guardian.py FD PATH ARGUMENT...`` as the leader of a process group. FD is the reading end of a pipe that
the worker holds open and never writes to: its end is the worker's end, and the whole group is killed. Otherwise the
guardian ends as the program does, with its exit code or by its signal. It imports little, because each run starts one.
"""

from __future__ import annotations

import _thread
import os
import resource
import signal
import sys
from contextlib import suppress

CANNOT_START = 126


def main() -> None:
    """Run the program and end as it does."""
    lifeline = int(sys.argv[1])
    os.set_inheritable(lifeline, False)
    # The group is asked to end by SIGTERM; the guardian has to see how the program takes it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    program = os.fork()
    if program == 0:
        _become(sys.argv[2:])
    _thread.start_new_thread(_watch, (lifeline,))
    # The program's pipes must end when the program closes them.
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    _, status = os.waitpid(program, 0)
    _end_as(os.waitstatus_to_exitcode(status))


def _become(command: list[str]) -> None:
    """Turn into the program, with the signals that Python ignores as programs expect them."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(command[0], command)  # noqa: S606  # no shell is the point
    except OSError as error:
        os.write(2, f"{command[0]} can't be started: {error.strerror}\n".encode())
        os._exit(CANNOT_START)


def _watch(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)


def _end_as(code: int) -> None:
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # SIGKILL has no disposition to reset
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
