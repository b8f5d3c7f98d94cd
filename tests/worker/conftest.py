from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import Stack, cloned


@pytest.fixture(scope="session")
def stack(postgres_url: str, template: str, broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A dispatcher and a worker with two processes, shared by the tests that leave them as they were."""
    with cloned(postgres_url, template) as database_url:
        made = Stack(database_url, broker_url, tmp_path_factory.mktemp("stack"), TASKYARD_WORKER__PROCESSES="2")
        made.start("dispatcher")
        made.start("worker")
        yield made.ready()
        made.close()


@pytest.fixture
def own_stack(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Stack]:
    """A stack of this test's own, with nothing started: for tests that stop and kill."""
    made = Stack(database_url, broker_url, tmp_path, TASKYARD_WORKER__PROCESSES="1", TASKYARD_WORKER__STOP_GRACE="1")
    yield made
    made.close()
