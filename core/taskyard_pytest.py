"""The fixtures that pytest finds by entry point wherever Taskyard is installed.

Beside ``taskyard`` and not in it, and with nothing imported before a fixture is asked for: pytest loads this module in every run of
that Python, most of which have nothing to do with Taskyard.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from taskyard.testing import Receiver, RunningTaskyard


@pytest.fixture(scope="session")
def taskyard_toml() -> str:
    """The ``taskyard.toml`` of the ``taskyard`` fixture; empty. Define a fixture of this name to have another."""
    return ""


@pytest.fixture(scope="session")
def taskyard(taskyard_toml: str) -> Iterator[RunningTaskyard]:
    """A whole Taskyard with all installed plugins, and a database of its own: started once a session."""
    from taskyard.testing import running_taskyard

    with running_taskyard(toml=taskyard_toml) as running:
        yield running


@pytest.fixture
def taskyard_receiver() -> Iterator[Receiver]:
    """An HTTP server on loopback for one test: it records what it is sent, and answers as the test says."""
    from taskyard.testing import receiver

    with receiver() as started:
        yield started
