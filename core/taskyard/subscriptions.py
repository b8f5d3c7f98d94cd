"""What a submission may ask for: to be told of its own task, by a notifier that the operator allows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, WithJsonSchema

from taskyard import storable
from taskyard.events import EVENT_TYPES
from taskyard.notifiers import is_for_operators_only
from taskyard.plugins import Registry
from taskyard.spelling import did_you_mean
from taskyard.validation import problems_of

ENDS = ("task.succeeded", "task.failed", "task.cancelled", "task.expired")
MOST = 5
#: Characters of JSON of the options of all subscriptions of a task. A notifier's model reads them in the web process: a template takes its time.
MAX_OPTIONS = 16 * 1024


class Wish(BaseModel):
    """One subscription, as a client asks for it."""

    model_config = ConfigDict(extra="forbid")

    notifier: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=255)]
    options: dict[str, Any] = Field(default_factory=dict, repr=False)
    events: list[Literal[EVENT_TYPES]] = Field(default_factory=lambda: list(ENDS), min_length=1, max_length=len(EVENT_TYPES))  # type: ignore[valid-type]  # the tuple is a constant


_SCHEMA = {
    "type": "array",
    "maxItems": MOST,
    "items": {
        "type": "object",
        "properties": {
            "notifier": {"type": "string", "minLength": 1, "maxLength": 255},
            "options": {"type": "object", "description": "By the notifier's own model: see `GET /notifiers`. Never shown again."},
            "events": {"type": "array", "items": {"enum": list(EVENT_TYPES)}, "minItems": 1, "description": "Default: the four ends."},
        },
        "required": ["notifier"],
        "additionalProperties": False,
    },
}
Notify = Annotated[list[Wish], Field(max_length=MOST), WithJsonSchema(_SCHEMA)]


def open_to_clients(registry: Registry, allowed: Collection[str]) -> list[str]:
    """The notifiers that submissions may name: of those that the operator allows, the installed ones that are not for operators only."""
    return sorted(name for name in allowed if name in registry.notifiers and not is_for_operators_only(registry.notifiers[name]))


def problems(registry: Registry, allowed: Collection[str], wishes: Sequence[Wish]) -> list[tuple[str, str]]:
    """What is wrong with them, as (JSON pointer, sentence) pairs; the options are checked by their notifier's model."""
    if sum(len(storable.to_json(wish.options)) for wish in wishes) > MAX_OPTIONS:
        return [("/notify", f"expected options of at most {MAX_OPTIONS // 1024} KiB of JSON in all")]
    found: list[tuple[str, str]] = []
    possible = open_to_clients(registry, allowed)
    for index, wish in enumerate(wishes):
        at = f"/notify/{index}"
        if wish.notifier not in possible:
            known = f" Possible: {', '.join(possible)}." if possible else " None is."
            found.append((f"{at}/notifier", f"not a notifier that submissions may name here.{did_you_mean(wish.notifier, possible) or known}"))
            continue
        notifier = registry.notifiers[wish.notifier]
        try:
            notifier.Options.model_validate(wish.options, context={"config": registry.config_of_notifier(wish.notifier)})
        except ValidationError as error:
            found += problems_of(error, wish.options, notifier.Options.model_fields, f"{at}/options")
    return found


def rows(wishes: Sequence[Wish]) -> list[dict[str, Any]]:
    """Subscriptions as they are stored with their task: the options as they were sent, for a later version of the notifier to read."""
    return [{"notifier": wish.notifier, "options": wish.options, "events": list(dict.fromkeys(wish.events))} for wish in wishes]
