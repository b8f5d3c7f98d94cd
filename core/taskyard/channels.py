"""The NOTIFY channels between the roles. A notification is a hint too: whoever listens also looks by itself now and then."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection, text

#: Tasks became ready, or are planned. The payload is ``queue/lane``.
READY: Final = "taskyard_ready"
#: A running task was asked to stop. The payload is its id. Sent by lifecycle.cancel itself.
CANCEL: Final = "taskyard_cancel"
#: A task that somebody waits for has ended. The payload is its id. Sent by the verbs themselves.
ENDED: Final = "taskyard_ended"

ANNOUNCE = text(f"SELECT pg_notify('{READY}', ready) FROM unnest(CAST(:ready AS text[])) AS ready")


def announce(connection: Connection, lines: Iterable[tuple[str, str]]) -> None:
    """Wake the dispatchers for these (queue, lane), when this transaction commits.

    A NOTIFY makes commits stand in line for a lock of the whole server, so this is for rare moves; what many requests do is
    announced after their commit (see the API's announcer).
    """
    if ready := sorted({f"{queue}/{lane}" for queue, lane in lines}):
        connection.execute(ANNOUNCE, {"ready": ready})
