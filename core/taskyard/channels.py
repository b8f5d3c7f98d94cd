"""The NOTIFY channels between the roles. A notification is a hint too: whoever listens also looks by itself now and then."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection, text

#: Tasks became ready, or are planned. The payload is ``queue/lane``, after :data:`HINTED` if a direct hint went out for each of them.
READY: Final = "taskyard_ready"
#: Marks a line in READY whose tasks should be claimed by now: it is worth one look, for hints get lost.
HINTED: Final = "?"
#: Dispatchers say which lines are open to direct hints. The payload is ``open queue/lane`` or ``closed queue/lane``.
LINES: Final = "taskyard_lines"
#: A running task was asked to stop. The payload is its id. Sent by lifecycle.cancel itself.
CANCEL: Final = "taskyard_cancel"
#: A task that somebody waits for has ended. The payload is its id. Sent by the verbs themselves.
ENDED: Final = "taskyard_ended"

ANNOUNCE = text(f"SELECT pg_notify('{READY}', ready) FROM unnest(CAST(:ready AS text[])) AS ready")
_TELL_LINES = text(f"SELECT pg_notify('{LINES}', line) FROM unnest(CAST(:lines AS text[])) AS line")


def announce(connection: Connection, lines: Iterable[tuple[str, str]]) -> None:
    """Wake the dispatchers for these (queue, lane), when this transaction commits.

    A NOTIFY makes commits stand in line for a lock of the whole server, so this is for rare moves; what many requests do is
    announced after their commit (see the API's announcer).
    """
    if ready := sorted({f"{queue}/{lane}" for queue, lane in lines}):
        connection.execute(ANNOUNCE, {"ready": ready})


def tell_lines(connection: Connection, news: Iterable[str]) -> None:
    """Tell the processes that take tasks which lines are open or closed, when this transaction commits: payloads of :data:`LINES`."""
    connection.execute(_TELL_LINES, {"lines": list(news)})
