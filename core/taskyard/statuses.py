"""The statuses of a task. Apart from :mod:`taskyard.lifecycle`, which says who moves a task on, so that clients need no database library."""

from __future__ import annotations

from typing import Literal

Status = Literal["scheduled", "pending", "queued", "running", "held", "succeeded", "failed", "cancelled", "expired"]

LIVE = ("scheduled", "pending", "queued", "running", "held")
TERMINAL = ("succeeded", "failed", "cancelled", "expired")
#: The verbs of people: what ``allowed`` in an illegal-transition problem names.
PERSONAL_VERBS = ("cancel", "hold", "release", "retry", "update")
