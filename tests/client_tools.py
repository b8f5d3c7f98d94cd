"""The generators of clients, in an environment of their own."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / ".venv-client"


def install_client_tools() -> Path:
    """Where they are. Test files run side by side: one installs, the others wait for it."""
    with (Path(sys.prefix) / ".client-tools.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", "--silent", ".venv-client/.ready"], cwd=ROOT, check=True)
    return TOOLS
