"""The zygote: imports every plugin once and forks children on request. Run as ``python -m taskyard_worker.zygote FD``.

It stays single-threaded and runs no handler, so its forks are clean, start in milliseconds and share its memory. When the
worker is gone (its end of the socket closes, whatever killed it) the zygote kills all its children and ends: a worker never
leaves orphans.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from contextlib import suppress

import structlog

from taskyard import failpoints, logs
from taskyard.collector import spare_what_is_loaded
from taskyard.import_watch import DEAD_THREADS
from taskyard.plugins import Registry, load_plugins_for
from taskyard.settings import Settings, load_settings
from taskyard_worker import child, wire

log = structlog.get_logger(__name__)


def main() -> None:
    """Serve fork requests until the worker goes away."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    # An orchestrator may signal all processes that it knows; only the worker decides when its processes end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settings = load_settings()
    logs.configure_role(settings)
    failpoints.arm()
    registry = load_plugins_for(settings)
    for plugin in registry.plugins:
        for thread in plugin.threads:
            log.warning("plugin.thread_at_import", plugin=plugin.name, problem=thread, consequence=DEAD_THREADS)
    spare_what_is_loaded(young=None)
    channel.sendall(wire.pack({"ready": True}))
    wake_in, wake_out = os.pipe()
    os.set_blocking(wake_out, False)
    signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: set[int] = set()
    while True:
        ready, _, _ = select.select([channel.fileno(), wake_in], [], [])
        if wake_in in ready:
            os.read(wake_in, 4096)
            _bury(channel, children)
        if channel.fileno() in ready and not _serve(channel, children, settings, registry):
            break
    for pid in children:
        _kill_group(pid)
        os.waitpid(pid, 0)


def _serve(channel: socket.socket, children: set[int], settings: Settings, registry: Registry) -> bool:
    """Fork one child for one request: a byte for its kind, and the socket that it talks on."""
    try:
        kind, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    except ConnectionError:
        return False
    if not kind:
        return False
    descriptor = descriptors[0]
    # Received descriptors are inheritable: a program that a handler starts with close_fds=False would have the child's channel.
    os.set_inheritable(descriptor, False)
    try:
        pid = os.fork()
    except OSError as error:
        # No process or memory to spare. Its end would be the end of all its children.
        os.close(descriptor)
        with suppress(ConnectionError):
            channel.sendall(wire.pack({"unforked": str(error)}))
        return True
    if pid == 0:
        signal.set_wakeup_fd(-1)
        channel.close()
        child.main(socket.socket(fileno=descriptor), is_async=kind == b"a", settings=settings, registry=registry)
        os._exit(0)
    os.close(descriptor)
    children.add(pid)
    with suppress(ConnectionError):
        channel.sendall(wire.pack({"forked": pid}))
    return True


def _bury(channel: socket.socket, children: set[int]) -> None:
    """Reap dead children, and kill what they have left in their groups before their numbers can be reused."""
    while children:
        try:
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if dead is None:
            return
        _kill_group(dead.si_pid)
        os.waitpid(dead.si_pid, 0)
        children.discard(dead.si_pid)
        with suppress(ConnectionError):
            channel.sendall(wire.pack({"exited": dead.si_pid, "status": dead.si_status, "signalled": dead.si_code != os.CLD_EXITED}))


def _kill_group(pid: int) -> None:
    """Kill a child that is not buried yet, and what it started. One that was just forked has no group of its own yet."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
