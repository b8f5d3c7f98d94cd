"""The clock that all processes of a machine share: it goes on while a process is stopped, and while the whole machine sleeps."""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds since the machine was started."""
    return time.clock_gettime(_CLOCK)
