"""How long a migration may hold others up."""

from __future__ import annotations

# A lock that is queued for blocks everybody behind it: give up soon, and try again.
LOCK_TIMEOUT = "5s"
STATEMENT_TIMEOUT = "60s"

# The advisory lock that one upgrader has. Any number that nothing else in the database uses: these are the bytes "taskyard".
UPGRADE_LOCK = int.from_bytes(b"taskyard", "big")
