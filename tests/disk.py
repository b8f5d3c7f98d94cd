"""A disk for one database that can be filled: a small tmpfs that is a tablespace. For root, and a PostgreSQL of one's own."""

from __future__ import annotations

import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from taskyard.children import NOBODY, is_root
from tests.stack import until

#: Bytes that the disk has while it is not full. They are taken only as they are written.
SIZE = 2 * 1024**3


class Disk:
    """A tmpfs. Where we may not mount one, it is a folder like any other, and ``is_real`` is false."""

    def __init__(self) -> None:
        # A mount point must be reached by the server's user, and have a short path.
        self.folder = Path(tempfile.mkdtemp(prefix="ty-disk-", dir="/tmp"))
        self.is_real = is_root() and self._mount(f"size={SIZE}")
        if is_root():
            os.chown(self.folder, NOBODY, NOBODY)

    def fill(self) -> None:
        """Leave no room for another page."""
        # It grows while it is looked at, and can't be smaller than what is on it.
        until(self._shrink, what="the disk to be as small as what is on it")

    def free(self) -> None:
        """Give back all the room."""
        assert self._mount(f"remount,size={SIZE}")

    def close(self) -> None:
        """Let it go, with what is on it."""
        if self.is_real:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _shrink(self) -> bool:
        stat = os.statvfs(self.folder)
        return self._mount(f"remount,size={(stat.f_blocks - stat.f_bfree) * stat.f_frsize}")

    def _mount(self, options: str) -> bool:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)], capture_output=True, check=False)
        return done.returncode == 0


@contextmanager
def database_on(disk: Disk, server_url: str, template: str) -> Iterator[str]:
    """The URL of a fresh database on the disk, like ``template``."""
    name = f"ty_disk_{uuid.uuid4().hex[:10]}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE TABLESPACE {name} LOCATION '{disk.folder}'")
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} TABLESPACE {name}")
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        admin.execute(f"DROP TABLESPACE {name}")
