"""The parts' log lines on one terminal, each with its part's name."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from typing import TextIO

_COLOURS = (36, 35, 32, 33, 34)
_GREY = 90
_LONGEST_LINE = 1 << 20


class Output:
    """Writes lines to one stream. With ``json_lines`` each is a JSON object with the name as its first key, ``part``."""

    def __init__(self, stream: TextIO, *, width: int, json_lines: bool = False) -> None:
        self._stream = stream
        self._width = width
        self._json = json_lines
        self._colours: dict[str, int] = {"up": _GREY}
        self._coloured = stream.isatty() and "NO_COLOR" not in os.environ

    def say(self, text: str) -> None:
        """A line of `taskyard up` itself."""
        self.line("up", json.dumps({"event": text}) if self._json else text)

    def line(self, name: str, text: str) -> None:
        """One line of a part."""
        written = _with_part(name, text) if self._json else f"{self._prefix(name)}{text}"
        # Whoever read our log may have gone; that is no reason to stop.
        with contextlib.suppress(OSError):
            self._stream.write(f"{written}\n")
            self._stream.flush()

    async def copy(self, name: str, source: asyncio.StreamReader) -> None:
        """Copy lines until the source ends. A very long line comes in pieces."""
        rest = b""
        while chunk := await source.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self.line(name, line.decode(errors="replace"))
            if len(rest) > _LONGEST_LINE:
                self.line(name, rest.decode(errors="replace"))
                rest = b""
        if rest:
            self.line(name, rest.decode(errors="replace"))

    def _prefix(self, name: str) -> str:
        label = f"{name:<{self._width}} | "
        if not self._coloured:
            return label
        colour = self._colours.setdefault(name, _COLOURS[(len(self._colours) - 1) % len(_COLOURS)])
        return f"\x1b[{colour}m{label}\x1b[0m"


def _with_part(name: str, text: str) -> str:
    """A part's JSON line with its name; any other line (a program that a handler started may write to the terminal) as the event of one."""
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    return json.dumps({"part": name} | (told if isinstance(told, dict) else {"event": text}))
