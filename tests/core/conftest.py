"""Fixtures of the tests of the core."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, make_url

from tests.databases import cloned, empty

from .life import Life


@pytest.fixture(scope="session")
def shared_engine(postgres_url: str, template: str) -> Iterator[Engine]:
    """One database for all tests of the lifecycle: emptying it takes a tenth of the time that cloning one takes."""
    with cloned(postgres_url, template) as url:
        engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), pool_size=10)
        yield engine
        engine.dispose()


@pytest.fixture
def life(shared_engine: Engine) -> Iterator[Life]:
    yield Life(shared_engine)
    with shared_engine.begin() as connection:
        empty(connection)
