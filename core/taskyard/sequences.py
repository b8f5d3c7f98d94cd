"""Sequences that are behind their tables, as after a restore of data alone, or a switchover to a logical replica, which copies no sequences.

The next numbers are taken already then: each insert fails until the sequence has caught up, or is set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from taskyard.tables import metadata

# A statement's snapshot is taken before it reads a sequence, so no insert beside it makes a sequence look behind. A sequence whose value this
# role may not read is passed over.
_LOOK: Final = """
SELECT sequence, COALESCE(last_value, 0) AS drawn, (SELECT max({column}) FROM {table}) AS highest
FROM pg_get_serial_sequence('{table}', '{column}') AS sequence LEFT JOIN pg_sequences ON format('%I.%I', schemaname, sequencename) = sequence
WHERE has_sequence_privilege(sequence, 'USAGE, SELECT')"""


@dataclass(frozen=True, slots=True)
class Behind:
    """A sequence that has ``drawn`` a number below the ``highest`` that is in use."""

    sequence: str
    drawn: int
    highest: int

    @property
    def remedy(self) -> str:
        """The statement that mends it."""
        return f"SELECT setval('{self.sequence}', {self.highest})"


def behind(connection: Connection) -> list[Behind]:
    """The sequences of our tables that are behind."""
    rows = connection.execute(_STATEMENT).all()
    return [Behind(row.sequence, row.drawn, row.highest) for row in rows if row.highest is not None and row.highest > row.drawn]


_STATEMENT: Final = text(
    " UNION ALL ".join(
        _LOOK.format(table=table.name, column=column.name) for table in metadata.sorted_tables for column in table.columns if column.identity is not None
    )
)
