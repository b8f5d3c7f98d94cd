"""Which servers take part in the tests, as TASKYARD_TEST_SERVERS says: see conftest.py."""

from __future__ import annotations

import os

_CHOICE = os.environ.get("TASKYARD_TEST_SERVERS", "where they answer")
#: A server that does not answer is an error.
REQUIRED = _CHOICE == "required"


def wanted() -> bool:
    """May tests use the servers that are installed or running on this machine?"""
    return _CHOICE != "none"
