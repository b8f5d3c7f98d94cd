"""The process that forks a worker's children, by itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from taskyard_worker import wire

#: Loaded by Python at its start: on a busy machine a child may take that long to begin.
SLOW_CHILDREN = "import os, time; setsid = os.setsid; os.setsid = lambda: (time.sleep(5), setsid())"


def test_it_ends_with_its_worker_though_children_were_forked_a_moment_before(tmp_path: Path) -> None:
    """Such a child has no process group of its own yet, and its worker has not let go of its end."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_CHILDREN)
    ours, theirs = socket.socketpair()
    zygote = subprocess.Popen(
        [sys.executable, "-m", "taskyard_worker.zygote", str(theirs.fileno())], pass_fds=[theirs.fileno()], env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    theirs.close()
    ready = wire.pack({"ready": True})
    assert ours.recv(len(ready), socket.MSG_WAITALL) == ready
    kept = []
    for kind in (b"a", b"s") * 5:
        end, child = socket.socketpair()
        socket.send_fds(ours, [kind], [child.fileno()])
        child.close()
        kept.append(end)
    ours.close()
    try:
        assert zygote.wait(30) == 0
    finally:
        zygote.kill()
        zygote.wait()
        for end in kept:
            end.close()
