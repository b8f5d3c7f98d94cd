"""The independent ledger: what clients, handlers and the receiver saw, each in a file of its own that the product knows nothing of."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path


class Record:
    """A file of lines. Each is one write to a descriptor opened for appending, so that lines of several writers never mix."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, *words: object, at: float | None = None) -> None:
        """Write a line; the time comes second: ``at``, or now."""
        first, *rest = map(str, words)
        os.write(self._descriptor, (" ".join([first, f"{time.time() if at is None else at:.6f}", *rest]) + "\n").encode())

    def lines(self) -> Iterator[list[str]]:
        """The lines so far, as words."""
        with self.path.open() as file:
            for line in file:
                yield line.split()


class Records:
    """All of a run's."""

    def __init__(self, folder: Path) -> None:
        self.clients = Record(folder / "clients")
        self.handlers = Record(folder / "handlers")
        self.receiver = Record(folder / "receiver")
        self.faults = Record(folder / "faults")
        #: Once this file is there, runs that were overtaken may end.
        self.gate = folder / "gate"

    def open_gate(self) -> None:
        """Let them end."""
        self.gate.touch()
