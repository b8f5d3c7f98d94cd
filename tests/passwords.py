"""A database role of one's own with a password that counts, on a PostgreSQL of one's own, to be changed under those who use it."""

from __future__ import annotations

import uuid
from pathlib import Path
from types import TracebackType

import psycopg
from sqlalchemy import make_url


class Login:
    """Owns nothing, and may read and write all tables of a database. Its ``url`` has the password that it began with."""

    def __init__(self, database_url: str, name: str | None = None) -> None:
        self._admin_url = database_url
        self.name = name or f"ty_login_{uuid.uuid4().hex[:8]}"
        self.url = make_url(database_url).set(username=self.name, password="first").render_as_string(hide_password=False)

    def __enter__(self) -> Login:
        self.create()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.drop()

    def create(self) -> None:
        """Make it, with rights on what is there and on what a migration makes later."""
        rights = "SELECT, INSERT, UPDATE, DELETE ON", "USAGE, SELECT ON"
        self._run(f"CREATE ROLE {self.name} LOGIN PASSWORD 'first'")
        for right, what in zip(rights, ("TABLES", "SEQUENCES"), strict=True):
            self._run(
                f"GRANT {right} ALL {what} IN SCHEMA public TO {self.name}",
                f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT {right} {what} TO {self.name}",
            )
        # An embedded server asks nobody else for a password. The first line that fits counts.
        self._ask_for_passwords()

    def drop(self) -> None:
        """Forget it, and end its sessions."""
        self._run(*self._ending(), f"DROP OWNED BY {self.name} CASCADE", f"DROP ROLE {self.name}")

    def rotate(self) -> None:
        """Another password from now on, and the sessions that knew the old one end."""
        self._run(f"ALTER ROLE {self.name} PASSWORD 'second'", *self._ending())

    def restore(self) -> None:
        """The first password again."""
        self._run(f"ALTER ROLE {self.name} PASSWORD 'first'")

    def _ending(self) -> list[str]:
        return [f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{self.name}'"]

    def _ask_for_passwords(self) -> None:
        with psycopg.connect(self._admin_url, autocommit=True) as admin:
            row = admin.execute("SHOW hba_file").fetchone()
            assert row is not None
            file = Path(row[0])
            lines = [f"host all {self.name} all scram-sha-256", f"local all {self.name} scram-sha-256"]
            file.write_text("\n".join([*lines, file.read_text()]))
            admin.execute("SELECT pg_reload_conf()")

    def _run(self, *statements: str) -> None:
        with psycopg.connect(self._admin_url, autocommit=True) as admin:
            for statement in statements:
                admin.execute(statement.encode())
