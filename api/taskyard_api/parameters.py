"""Query parameters: typed, and strict about names that no call has."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypeVar, get_args
from uuid import UUID

from fastapi import Path
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError
from starlette.convertors import StringConvertor
from typing_extensions import TypedDict

from taskyard.delivery_lists import DeliveryFilters
from taskyard.errors import InvalidInput, NotFound
from taskyard.events import DIGEST, EVENT_TYPES, SYSTEM_EVENT_TYPES
from taskyard.lifecycle import Status
from taskyard.logline import Level
from taskyard.queries import TaskFilters
from taskyard.spelling import LONGEST, did_you_mean
from taskyard.storable import escape_pointer, find_unstorable
from taskyard.validation import Instant, problems_of, unknown_names
from taskyard_api.models import TaskOut


def _storable(value: str) -> str:
    if "\x00" in value:
        raise PydanticCustomError("unstorable", "the character U+0000 can't be in any stored text")
    return value


def _mended(value: Any) -> Any:
    """A ``+`` that a client forgot to escape arrives as a space, and some generated clients write offsets without the colon."""
    return re.sub(r"([+-]\d\d)(\d\d)$", r"\1:\2", value.replace(" ", "+")) if isinstance(value, str) else value


A = TypeVar("A")
Word = Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_storable)]
Words = Annotated[list[Word], Field(default_factory=list, max_length=50)]
Moment = Annotated[Instant, BeforeValidator(_mended)]
Limit = Annotated[int, Field(ge=1, le=200, description="Items on a page.")]
_CURSOR: dict[str, Any] = {"pattern": "^[A-Za-z0-9_-]*$"}
ActionCursor = Annotated[
    str, Field(max_length=500, description="`next_cursor` of the answer before, with the same action and filter.", json_schema_extra=_CURSOR)
]
Cursor = Annotated[str, Field(max_length=500, description="`next_cursor` of the page before, with the same filters.", json_schema_extra=_CURSOR)]
TaskId = Annotated[str, Path(json_schema_extra={"format": "uuid"})]
DeliveryId = Annotated[str, Path(json_schema_extra={"pattern": "^[0-9]+$"})]


class Query(BaseModel):
    """The query parameters of a call."""

    model_config = ConfigDict(extra="forbid")
    #: Parameters whose names begin with this are read by another function.
    elsewhere: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _only_known(cls, sent: Any) -> Any:
        if cls.elsewhere and isinstance(sent, Mapping):
            sent = {name: value for name, value in sent.items() if not name.startswith(cls.elsewhere)}
        problems = unknown_names(sent, cls.model_fields, "query parameter") if isinstance(sent, Mapping) else []
        if problems:
            names = ", ".join(pointer.removeprefix("/") for pointer, _ in problems)
            raise InvalidInput(f"No such query parameter: {names}.", problems)
        return sent


def refuse_repeated(names: Iterable[str], single: Collection[str]) -> None:
    """Check that no parameter of ``single`` is there twice: which of the values would count?

    Raises:
        InvalidInput: names each that is.
    """
    counts = Counter(name for name in names if name in single)
    if repeated := [name for name, count in counts.items() if count > 1]:
        problems = [(f"/{name}", f"expected one value, not {counts[name]}") for name in repeated]
        raise InvalidInput(f"The query is not as expected: {', '.join(repeated)}.", problems)


class PageQuery(Query):
    """Which page of a list."""

    limit: Limit = 50
    cursor: Cursor | None = None


class LogQuery(PageQuery):
    """Which lines of a task's log."""

    level: list[Level] = Field(default_factory=list)


Namespaces = Annotated[
    Word | None,
    Field(description="For keys with the scope `all-namespaces`: tasks of this namespace only, or of all (`*`, as without it). Others may name their own."),
]


class FilterQuery(Query):
    """Which tasks. Values of one filter add up; different filters must all hold."""

    namespace: Namespaces = None

    status: list[Status] = Field(default_factory=list)
    type: Words
    queue: Words
    tag: Words
    priority: int | None = Field(None, ge=0, le=9)
    created_after: Moment | None = Field(None, description="Included.")
    created_before: Moment | None = Field(None, description="Not included.")
    q: Word | None = Field(None, description="Start of an id, a type or a tag. One that is more than the first group of an id is looked for as that alone.")
    parent_id: UUID | None = Field(None, description="The task whose handler submitted them.")
    id: list[UUID] = Field(default_factory=list, max_length=200)
    unique_key: Words

    def filters(self) -> TaskFilters:
        """These parameters as core's filters."""
        return TaskFilters(
            status=tuple(sorted(set(self.status))),
            type=tuple(sorted(set(self.type))),
            queue=tuple(sorted(set(self.queue))),
            tag=tuple(sorted(set(self.tag))),
            priority=self.priority,
            created_after=self.created_after,
            created_before=self.created_before,
            q=self.q,
            parent_id=self.parent_id,
            id=tuple(sorted(set(self.id))),
            unique_key=tuple(sorted(set(self.unique_key))),
        )


Named = Annotated[
    bool,
    Field(description="`false` sends messages without an `event` line: a browser's `EventSource` gives those to `onmessage`. The type is in `data` as well."),
]


class StreamQuery(FilterQuery):
    """Whose events, and how they are sent."""

    named: Named = True


class TaskStreamQuery(Query):
    """How a task's events are sent."""

    named: Named = True


METADATA = "metadata."
#: Names of metadata that one list may look for.
MOST_NAMES = 10
_KNOWN_FIELDS = tuple(TaskOut.model_fields)


def _known_fields(given: str) -> str:
    for name in given.split(","):
        if name not in _KNOWN_FIELDS:
            raise PydanticCustomError("field", "{said}", {"said": f"a task has no field {name[:LONGEST]!r}.{did_you_mean(name, _KNOWN_FIELDS)}"})
    return given


class TaskQuery(FilterQuery, PageQuery):
    """Which tasks, which page of them, and what of each."""

    elsewhere: ClassVar[str | None] = METADATA

    fields: Annotated[
        str | None,
        Field(
            max_length=500,
            description="Only these fields of each task, with commas between them, such as `id,type,status`. Payloads and results that are not among them are "
            "not read at all.",
            json_schema_extra={"pattern": f"^({'|'.join(_KNOWN_FIELDS)})(,({'|'.join(_KNOWN_FIELDS)}))*$"},
        ),
        AfterValidator(lambda given: None if given is None else _known_fields(given)),
    ] = None

    def chosen(self) -> frozenset[str] | None:
        """The fields to show; None: all."""
        return None if self.fields is None else frozenset(self.fields.split(","))


def metadata_filter(given: Iterable[tuple[str, str]]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """The names of ``metadata.NAME=VALUE``, each with the values that match: the text and, if it can be read as one, the number, truth value or null.

    Raises:
        InvalidInput: there are too many names, or a name or value is too long.
    """
    found: dict[str, list[Any]] = {}
    for sent, value in given:
        if not sent.startswith(METADATA):
            continue
        name = sent.removeprefix(METADATA)
        if not 1 <= len(name) <= 255 or len(value) > 255 or "\x00" in name + value:
            raise InvalidInput(
                "The query is not as expected: metadata.", [(f"/{escape_pointer(sent[:LONGEST])}", "expected a name and a value of up to 255 characters")]
            )
        found.setdefault(name, []).extend(_readings(value))
    if len(found) > MOST_NAMES:
        raise InvalidInput("The query is not as expected: metadata.", [("/metadata", f"expected up to {MOST_NAMES} names")])
    return tuple(sorted((name, tuple(values)) for name, values in found.items()))


def _readings(value: str) -> list[Any]:
    """The JSON values that a query's text may stand for."""
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        return [value]
    scalar = read is None or isinstance(read, int) or (isinstance(read, float) and math.isfinite(read))
    return [value, read] if scalar and find_unstorable(read) is None else [value]


DeliveryStatus = Literal["pending", "queued", "sending", "delivered", "dead"]
EventType = Literal[(*EVENT_TYPES, *SYSTEM_EVENT_TYPES, DIGEST)]  # type: ignore[valid-type]  # the tuple is a constant


class DeliveryQuery(PageQuery):
    """Which deliveries. Values of one filter add up; different filters must all hold."""

    namespace: Namespaces = None

    status: list[DeliveryStatus] = Field(default_factory=list)
    route: Words
    notifier: Words
    event: list[EventType] = Field(default_factory=list)
    task_id: UUID | None = None
    created_after: Moment | None = Field(None, description="Included.")
    created_before: Moment | None = Field(None, description="Not included.")

    def filters(self) -> DeliveryFilters:
        """These parameters as core's filters."""
        return _delivery_filters(self.model_dump(exclude={"limit", "cursor", "namespace"}))


def _delivery_filters(chosen: Mapping[str, Any]) -> DeliveryFilters:
    several = {name: tuple(sorted(set(chosen.get(name, ())))) for name in ("status", "route", "notifier", "event")}
    return DeliveryFilters(**several, task_id=chosen.get("task_id"), created_after=chosen.get("created_after"), created_before=chosen.get("created_before"))


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _any_of(kind: Any, most: int = 50) -> Any:
    """One value, or a list of those of which any may hold."""
    several = {"type": "array", "items": kind, "minItems": 1, "maxItems": most}
    return WithJsonSchema({"anyOf": [kind, several]})


_WORDS = _any_of({"type": "string", "minLength": 1, "maxLength": 255})
SomeWords = Annotated[list[Word], BeforeValidator(_listed), Field(min_length=1, max_length=50), _WORDS]
SomeStatuses = Annotated[list[Status], BeforeValidator(_listed), Field(min_length=1, max_length=50), _any_of({"enum": list(get_args(Status))})]


def _scalar(value: Any) -> Any:
    if isinstance(value, str):
        return _storable(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise PydanticCustomError("scalar", "expected text, a number, a truth value or null")


# Not the values' types: clients that are generated would have a class for them.
_METADATA = WithJsonSchema(
    {
        "type": "object",
        "minProperties": 1,
        "maxProperties": MOST_NAMES,
        "description": "Names at the top level of a task's metadata, and the value that each has: text, a number, a truth value or null.",
        "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
    }
)


class ActionFilter(TypedDict, total=False):
    """Which tasks: the filters of `GET /tasks`. An empty one is all tasks."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]  # Pydantic's way to configure a TypedDict

    status: SomeStatuses
    type: SomeWords
    queue: SomeWords
    tag: SomeWords
    priority: Annotated[int, Field(ge=0, le=9)]
    created_after: Annotated[Instant, Field(description="Included.")]
    created_before: Annotated[Instant, Field(description="Not included.")]
    q: Annotated[Word, Field(description="Start of an id, a type or a tag. One that is more than the first group of an id is looked for as that alone.")]
    parent_id: Annotated[UUID, Field(strict=False, description="The task whose handler submitted them.")]
    id: Annotated[
        list[Annotated[UUID, Strict(False)]], BeforeValidator(_listed), Field(min_length=1, max_length=200), _any_of({"type": "string", "format": "uuid"}, 200)
    ]
    unique_key: SomeWords
    metadata: Annotated[
        dict[Annotated[str, AfterValidator(_storable)], Annotated[Any, AfterValidator(_scalar)]], Field(min_length=1, max_length=MOST_NAMES), _METADATA
    ]


_EXAMPLE: dict[str, Any] = {"examples": [{"action": "cancel", "filter": {"type": "pages.fetch", "status": ["scheduled", "pending"]}, "dry_run": True}]}


class TaskAction(TypedDict):
    """One verb for all tasks that match."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, json_schema_extra=_EXAMPLE)  # type: ignore[misc]  # as above

    action: Literal["cancel", "hold", "release", "retry"]
    filter: ActionFilter
    dry_run: NotRequired[Annotated[bool, Field(description="Change nothing, and answer what would change.")]]
    cursor: NotRequired[ActionCursor]


class DeliveryActionFilter(TypedDict, total=False):
    """Which deliveries: the filters of `GET /deliveries`. An empty one is all that have ended."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]  # as above

    status: Annotated[list[DeliveryStatus], BeforeValidator(_listed), Field(min_length=1, max_length=50), _any_of({"enum": list(get_args(DeliveryStatus))})]
    route: SomeWords
    notifier: SomeWords
    event: Annotated[list[EventType], BeforeValidator(_listed), Field(min_length=1, max_length=50), _any_of({"enum": list(get_args(EventType))})]
    task_id: Annotated[UUID, Strict(False)]
    created_after: Annotated[Instant, Field(description="Included.")]
    created_before: Annotated[Instant, Field(description="Not included.")]


_DELIVERY_EXAMPLE: dict[str, Any] = {"examples": [{"action": "redeliver", "filter": {"status": "dead", "route": "failures"}, "dry_run": True}]}


class DeliveryAction(TypedDict):
    """One verb for all deliveries that match."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, json_schema_extra=_DELIVERY_EXAMPLE)  # type: ignore[misc]  # as above

    action: Literal["redeliver"]
    filter: DeliveryActionFilter
    dry_run: NotRequired[Annotated[bool, Field(description="Only count.")]]
    cursor: NotRequired[ActionCursor]


ACTION: TypeAdapter[TaskAction] = TypeAdapter(TaskAction)
DELIVERY_ACTION: TypeAdapter[DeliveryAction] = TypeAdapter(DeliveryAction)


def read_action(sent: dict[str, Any]) -> TaskAction:
    """A validated action. Raises InvalidInput, with JSON pointers."""
    return _read(ACTION, sent, TaskAction.__annotations__, ActionFilter.__annotations__)


def read_delivery_action(sent: dict[str, Any]) -> DeliveryAction:
    """A validated action. Raises InvalidInput, with JSON pointers."""
    return _read(DELIVERY_ACTION, sent, DeliveryAction.__annotations__, DeliveryActionFilter.__annotations__)


def _read(action: TypeAdapter[A], sent: dict[str, Any], names: Iterable[str], filters: Iterable[str]) -> A:
    try:
        return action.validate_python(sent)
    except ValidationError as error:
        told = [(at, detail + _nearest_filter(at, filters) if detail == "unknown name." else detail) for at, detail in problems_of(error, sent, names)]
        raise InvalidInput("The action is not as expected.", told) from None


def _nearest_filter(pointer: str, filters: Iterable[str]) -> str:
    return did_you_mean(pointer.removeprefix("/filter/"), filters) if pointer.startswith("/filter/") else ""


def action_filters(chosen: ActionFilter) -> TaskFilters:
    """An action's filter as core's filters."""
    return TaskFilters(
        status=tuple(sorted(set(chosen.get("status", ())))),
        type=tuple(sorted(set(chosen.get("type", ())))),
        queue=tuple(sorted(set(chosen.get("queue", ())))),
        tag=tuple(sorted(set(chosen.get("tag", ())))),
        priority=chosen.get("priority"),
        created_after=chosen.get("created_after"),
        created_before=chosen.get("created_before"),
        q=chosen.get("q"),
        parent_id=chosen.get("parent_id"),
        id=tuple(sorted(set(chosen.get("id", ())))),
        unique_key=tuple(sorted(set(chosen.get("unique_key", ())))),
        metadata=tuple(sorted((name, (value,)) for name, value in chosen.get("metadata", {}).items())),
    )


def delivery_action_filters(chosen: DeliveryActionFilter) -> DeliveryFilters:
    """An action's filter as core's filters."""
    return _delivery_filters(chosen)


class DeliveryConvertor(StringConvertor):
    """What may stand for a delivery in an address: not the name of the call beside it, which answers 405 to other methods."""

    regex = "(?!actions(?:/|$))[^/]+"


class TaskConvertor(StringConvertor):
    """What may stand for a task in an address: not the names of the calls beside it, which answer 405 to other methods."""

    regex = "(?!(?:actions|batch|validate)(?:/|$))[^/]+"


def task_uuid(text: str) -> UUID:
    """The id in a path.

    Raises:
        NotFound: it is no UUID as we write them, so no task has it.
    """
    try:
        if len(text) == 36:
            return UUID(text)
    except ValueError:
        pass
    raise NotFound(f"There is no task {text[:100]!r} here: an id looks like 01890a5d-ac96-774b-bcce-b302099a8057.")


def delivery_number(text: str) -> int:
    """The id in a path. Raises NotFound: no delivery has such an id."""
    if text.isascii() and text.isdecimal() and len(text) < 20 and (number := int(text)) < 2**63:
        return number
    raise NotFound(f"There is no delivery {text[:100]!r} here: an id is a number.")
