"""A database of a test's own: cloned from a migrated one, which takes a tenth of the time that migrating takes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, NullPool, create_engine, make_url, text

from taskyard.tables import metadata


def admin_engine(postgres_url: str) -> Engine:
    """To make and drop databases with. It has no pool: the server may be killed meanwhile."""
    return create_engine(make_url(postgres_url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT", poolclass=NullPool)


@contextmanager
def cloned(postgres_url: str, template: str = "template1") -> Iterator[str]:
    """The URL of a fresh database that is like ``template``, and is dropped at the end."""
    name = f"ty_test_{uuid.uuid4().hex[:12]}"
    admin = admin_engine(postgres_url)
    with admin.connect() as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    try:
        yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.exec_driver_sql(f'DROP DATABASE "{name}" WITH (FORCE)')


def empty(connection: Connection) -> None:
    """Delete every row, as if the database had just been migrated: that takes a tenth of the time that cloning takes."""
    for table in reversed(metadata.sorted_tables):
        connection.execute(text(f'DELETE FROM "{table.name}"'))
