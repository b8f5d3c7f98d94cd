"""Which plugin brought each task type when it last worked: what a service knows of a plugin that is broken now.

Dispatchers and workers note it when they start. Nothing is forgotten: it is looked up only for a plugin that is installed and has failed.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, text

from taskyard.errors import PluginFailed, UnknownTaskType
from taskyard.storable import to_json

_NOTE = text(
    """
INSERT INTO known_task_types AS known (type, plugin) SELECT key, value FROM jsonb_each_text(CAST(:owners AS jsonb)) ORDER BY key
ON CONFLICT (type) DO UPDATE SET plugin = EXCLUDED.plugin WHERE known.plugin <> EXCLUDED.plugin"""
)
_OWNER = text("SELECT plugin FROM known_task_types WHERE type = :type AND plugin = ANY (CAST(:failed AS text[]))")


def note(connection: Connection, owners: Mapping[str, str]) -> None:
    """Remember which plugin brings each type, by the type's names."""
    if owners:
        connection.execute(_NOTE, {"owners": to_json(owners)})


def look_up(connection: Connection, error: UnknownTaskType) -> UnknownTaskType | PluginFailed:
    """What to tell who asked for a type that no plugin brings now: it is unknown, or its plugin is one of those that have failed here."""
    plugin = connection.execute(_OWNER, {"type": error.type, "failed": list(error.failed)}).scalar()
    return error if plugin is None else PluginFailed(error.type, plugin)
