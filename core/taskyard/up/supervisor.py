"""Keeps the parts running, and stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal

from taskyard.errors import TaskyardError
from taskyard.up.output import Output
from taskyard.up.parts import Part

# Seconds before a part that died is started again: doubled each time, and short again once it ran steadily.
_FIRST_DELAY = 0.5
_LONGEST_DELAY = 30.0
_STEADY = 60.0
# Seconds within which another Ctrl-C is the same request: who started us may pass on what our whole process group got.
_ECHO = 1.0


class Supervisor:
    """Holds parts up until it is asked to stop, and stops the roles before the servers that they use."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._parts: list[Part] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._all_ready = False
        self._asked = asyncio.Event()
        self._asked_at = float("-inf")
        self._hurry = asyncio.Event()
        self._again: dict[str, asyncio.Event] = {}
        self.failed = False

    def listen(self) -> None:
        """Stop at SIGINT, SIGTERM and SIGHUP; another Ctrl-C, later, hurries."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        # Only a person is in a hurry. `make`, for one, sends its children the SIGTERM that they have got already.
        now = asyncio.get_running_loop().time()
        if not self._asked.is_set():
            self._output.say("stopping; Ctrl-C to hurry")
            self._asked.set()
            self._asked_at = now
        elif number == signal.SIGINT and now - self._asked_at > _ECHO:
            self._hurry.set()

    @property
    def stopping(self) -> bool:
        """Has somebody asked it to stop, or has a part failed before all were ready?"""
        return self._asked.is_set()

    async def add(self, part: Part) -> None:
        """Start a part and keep it running."""
        self._parts.append(part)
        self._again[part.name] = asyncio.Event()
        await part.start()
        self._keepers.append(asyncio.create_task(self._keep(part)))

    def ready(self) -> None:
        """From now on a part that dies is started again; until now it meant that something is set up wrongly."""
        self._all_ready = True

    def restart(self, *names: str) -> None:
        """Have parts stopped, politely, and started again; each goes its own way. One that is down is started at once."""
        for name in names:
            self._again[name].set()

    async def wait(self) -> None:
        """Wait until it is time to stop."""
        await self._asked.wait()

    async def stop(self) -> None:
        """Stop all roles together, each of which has its time, and then the servers that they use, the last started first."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(part.stop(self._hurry) for part in self._parts if not part.is_used))
        for part in reversed([part for part in self._parts if part.is_used]):
            await part.stop(self._hurry)

    async def _keep(self, part: Part) -> None:
        loop = asyncio.get_running_loop()
        delay = _FIRST_DELAY
        while True:
            began = loop.time()
            status = await self._ended_or_asked(part)
            if status is None:
                await self._start_again(part)
                continue
            how = _told(status)
            if not self._all_ready:
                self._output.say(f"{part.name} {how} before it was ready; its last lines say why")
                self.failed = True
                self._asked.set()
                return
            delay = _FIRST_DELAY if loop.time() - began > _STEADY else delay
            self._output.say(f"{part.name} {how}; starting it again in {delay:g} s")
            await self._pause(part, delay)
            delay = min(delay * 2, _LONGEST_DELAY)
            await self._start_again(part)

    async def _ended_or_asked(self, part: Part) -> int | None:
        """Wait until a part has ended: by itself, with its exit status, or because somebody asked for it to be started again."""
        ended, asked = asyncio.ensure_future(part.ended()), asyncio.ensure_future(self._again[part.name].wait())
        try:
            await asyncio.wait([ended, asked], return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return ended.result()
            await part.stop(self._hurry)
            await ended
            return None
        finally:
            ended.cancel()
            asked.cancel()

    async def _pause(self, part: Part, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._again[part.name].wait(), seconds)

    async def _start_again(self, part: Part) -> None:
        delay = _FIRST_DELAY
        while True:
            # Before it is started: what is asked for from now on is asked of the one that starts now.
            self._again[part.name].clear()
            try:
                await part.start()
            except TaskyardError as error:
                delay = min(delay * 2, _LONGEST_DELAY)
                self._output.say(f"{part.name} can't be started: {error} Trying again in {delay:g} s")
                await self._pause(part, delay)
            else:
                return


def _told(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
