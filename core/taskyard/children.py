"""Starting processes that never outlive the one that started them."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence

# `nobody`, under the name that every Linux has it. Its only use is to be anybody but root.
NOBODY = 65534
# What lets a process that is nobody still walk through the folders that root keeps to itself. Containers have it by default.
_WALK = "dac_override"


def dying_with_us(command: Sequence[str], end: signal.Signals = signal.SIGTERM) -> list[str]:
    """The same command, ended by the kernel with ``end`` when the *thread* that starts it ends in any way, SIGKILL included.

    Linux only (prctl(2), PR_SET_PDEATHSIG), by util-linux's setpriv; elsewhere the command is returned as it is. Start it from
    the main thread.
    """
    setpriv = _setpriv()
    return [setpriv, "--pdeathsig", end.name.removeprefix("SIG"), "--", *command] if setpriv else list(command)


def as_nobody(command: Sequence[str], end: signal.Signals = signal.SIGTERM) -> list[str]:
    """Like :func:`dying_with_us`, for a program that refuses to be root: as nobody, and with the one capability it needs.

    Opening our folders to a user of its own, as others do, would take chmod on every folder above, up to /root itself.

    Raises:
        FileNotFoundError: there is no setpriv here.
    """
    setpriv = _setpriv()
    if setpriv is None:
        raise FileNotFoundError("setpriv (util-linux) is not installed")
    caps = [f"--{kind}=-all,+{_WALK}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    # access(2), by which PostgreSQL looks for its own programs, takes no account of a capability without that bit (capabilities(7)).
    bits = "--securebits=+no_setuid_fixup"
    return [setpriv, bits, *user, *caps, "--pdeathsig", end.name.removeprefix("SIG"), "--", *command]


def is_root() -> bool:
    """Are we root, which PostgreSQL refuses to run as?"""
    return os.geteuid() == 0


def _setpriv() -> str | None:
    return shutil.which("setpriv") if sys.platform == "linux" else None
