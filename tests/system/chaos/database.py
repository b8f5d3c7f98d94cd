"""The harness's own look at the database, which may be away at any moment."""

from __future__ import annotations

import time
import uuid
from typing import Any

from sqlalchemy import Engine, Row, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from tests.disk import Disk
from tests.passwords import Login

PATIENCE = 60.0


class Database:
    """Asks until it is answered."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.login = Login(url, make_url(url).database)
        self.engine: Engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")

    @classmethod
    def made_on(cls, server: str, disk: Disk) -> Database:
        """A new, empty one on a server, whose tables are on a disk of their own."""
        name = f"chaos_{uuid.uuid4().hex[:10]}"
        admin = cls(server)
        admin.execute(f"CREATE TABLESPACE {name} LOCATION '{disk.folder}'")
        admin.execute(f"CREATE DATABASE {name} TABLESPACE {name}")
        admin.engine.dispose()
        return cls(make_url(server).set(database=name).render_as_string(hide_password=False))

    def url_of_roles(self) -> str:
        """The URL by which roles connect, once the schema is there: as a user of theirs, from whom rights can be taken."""
        self.login.create()
        return self.login.url

    @property
    def user(self) -> str:
        """The user that :meth:`url_of_roles` makes."""
        return self.login.name

    def drop(self, server: str) -> None:
        """Drop it, and leave its disk empty."""
        self.login.drop()
        self.engine.dispose()
        name, admin = make_url(self.url).database, Database(server)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        admin.execute(f"DROP TABLESPACE {name}")
        admin.engine.dispose()

    def execute(self, statement: str) -> None:
        """Run a statement that answers nothing."""
        with self.engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def rows(self, statement: str, **values: Any) -> list[Row[Any]]:
        """The rows of a statement. Raises what the driver raises if there is no answer for a minute."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                with self.engine.connect() as connection:
                    return list(connection.execute(text(statement), values))
            except DBAPIError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def value(self, statement: str, **values: Any) -> Any:
        """The first value of the first row, if there is one."""
        rows = self.rows(statement, **values)
        return rows[0][0] if rows else None
