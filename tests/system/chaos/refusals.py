"""Faults of a database that is there and refuses: a full disk, a changed password."""

from __future__ import annotations

from collections.abc import Callable

from tests.disk import Disk

from .database import Database
from .roles import Roles, reached, wait

_TRIGGERED = "tasks", "events"


class Refusals:
    """Each lasts until a role has met it, and a while longer: ``seconds``."""

    def __init__(self, disk: Disk, database: Database, roles: Roles, seconds: float) -> None:
        self._disk = disk
        self._database = database
        self._roles = roles
        self._seconds = seconds

    def disk_full(self) -> bool:
        """No page is written that is not there yet. Where we may not mount a disk, a trigger says so."""
        if self._disk.is_real:
            return self._while_refused(self._disk.fill, self._disk.free, "could not extend file")
        return self._while_refused(self._say_full, self._say_free, "no space left, says a trigger")

    def password_rotated(self) -> bool:
        """The roles' password is not theirs any more, until it is again."""
        return self._while_refused(self._database.login.rotate, self._database.login.restore, "password authentication failed")

    def _while_refused(self, begin: Callable[[], None], end: Callable[[], None], words: str) -> bool:
        since = {role: self._roles.log(role).stat().st_size for role in self._roles.names}
        begin()
        try:
            met = reached(lambda: any(self._roles.said(role, words, size) for role, size in since.items()))
            wait(self._seconds)
        finally:
            end()
        return met

    def _say_full(self) -> None:
        body = "BEGIN RAISE EXCEPTION 'no space left, says a trigger' USING ERRCODE = 'disk_full'; END"
        self._database.execute(f"CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$")
        for table in _TRIGGERED:
            self._database.execute(f"CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION full_disk()")

    def _say_free(self) -> None:
        self._database.execute("DROP FUNCTION full_disk CASCADE")
