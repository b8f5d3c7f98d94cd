"""Standard output and standard error as log lines."""

from __future__ import annotations

import io
import logging
import threading
from typing import TextIO

#: A line that never ends comes in pieces of so many characters.
LONGEST = 16_384


class Printed(io.TextIOBase):
    """What is written to it becomes log lines. ``stream`` is what it stands for; its file descriptor is still that one's."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, name: str, level: int, stream: TextIO) -> None:
        self.stream: TextIO = stream.stream if isinstance(stream, Printed) else stream
        self._logger = logging.getLogger(name)
        self._level = level
        self._rest = threading.local()

    def write(self, text: str) -> int:
        """Log each full line, and keep the rest of this thread's."""
        *lines, rest = (getattr(self._rest, "text", "") + text).split("\n")
        self._rest.text = rest if len(rest) < LONGEST else ""
        for line in lines if self._rest.text == rest else [*lines, rest]:
            self._say(line)
        return len(text)

    def flush(self) -> None:
        """A flush in the middle of a line does not end it: ``print(".", end="", flush=True)`` is one line too."""

    def fileno(self) -> int:
        """The stream's own: for programs that are started with it."""
        return self.stream.fileno()

    def writable(self) -> bool:
        """It can only be written to."""
        return True

    def _say(self, line: str) -> None:
        # Logging tells of its own faults on standard error: without this it would go round in circles.
        if line.strip() and not getattr(self._rest, "saying", False):
            self._rest.saying = True
            try:
                self._logger.log(self._level, "%s", line)
            finally:
                self._rest.saying = False
