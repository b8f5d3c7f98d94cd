"""What a handler's forks inherit from their child process: nothing that lets them speak in its name or ignore a signal.

`multiprocessing`, `concurrent.futures` and `os.fork` copy the whole process: its SIGTERM handler, its socket to the engine, its event loop.
Programs started by `exec` inherit none of these.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")


def forget_main() -> None:
    """Let processes of the start methods ``spawn`` and ``forkserver`` import no main module: ours is the zygote, and no handler's function is in it."""
    main: Any = sys.modules["__main__"]
    main.__spec__, main.__file__ = None, None


class Origin:
    """The process that the engine knows. In a fork of it, :attr:`is_copy` is true.

    ``channel`` is the socket to the engine, ``on_term`` the child's own handler of SIGTERM. ``loop`` is the child's event loop, if it has
    one, and ``selector`` the loop's.
    """

    def __init__(
        self, channel: socket.socket, on_term: Any, loop: asyncio.AbstractEventLoop | None = None, selector: selectors.BaseSelector | None = None
    ) -> None:
        self.is_copy = False
        self._channel = channel
        self._on_term = on_term
        self._loop = loop
        self._selector = selector
        self._masks = threading.local()
        os.register_at_fork(before=self._before, after_in_parent=self._restore_mask, after_in_child=self._become_copy)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a plugin's function. A copy that comes back from it ends."""
        try:
            value = function(*arguments)
        except BaseException as error:
            if self.is_copy:
                self.end_copy(error)
            raise
        if self.is_copy:
            self.end_copy()
        return value

    async def wait_for(self, coroutine: Awaitable[T]) -> T:
        """As :meth:`call`, for a coroutine."""
        try:
            value = await coroutine
        except BaseException as error:
            if self.is_copy:
                self.end_copy(error)
            raise
        if self.is_copy:
            self.end_copy()
        return value

    def end_copy(self, error: BaseException | None = None) -> None:
        """End this process, a copy, with the status that Python would give."""
        status = 0 if error is None else 1
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            log.error("fork.failed", consequence="only the process that the handler forked has ended", exc_info=error)
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(status & 0xFF)

    def _before(self) -> None:
        # Process.terminate() may come before the copy has given up our handler, which would swallow it. Blocked, the signal waits.
        self._masks.saved = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def _restore_mask(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.saved)

    def _become_copy(self) -> None:
        self.is_copy = True
        # A handler of SIGTERM that the task has set stays, as in any Python program.
        if signal.getsignal(signal.SIGTERM) == self._on_term:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._hang_up()
        if self._loop is not None:
            self._leave(self._loop)
        self._restore_mask()

    def _hang_up(self) -> None:
        """Put the null device in the channel's place: a closed descriptor's number would soon be another file's."""
        if self._channel.fileno() >= 0:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, self._channel.fileno(), inheritable=False)
            os.close(null)

    def _leave(self, loop: Any) -> None:
        """Leave the child's event loop: its epoll set is shared with the copy, and its callbacks are other tasks' next steps."""
        signal.set_wakeup_fd(-1)
        asyncio._set_running_loop(None)
        if self._selector is not None and isinstance(self._selector, selectors.EpollSelector):
            with select.epoll() as empty:
                os.dup2(empty.fileno(), self._selector.fileno(), inheritable=False)
        loop._ready.clear()
        # The coroutine of a handler that awaits something in the copy comes back to the loop.
        loop.call_soon(os._exit, 0)
