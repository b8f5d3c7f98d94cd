"""From what a client sends to a task that can be stored: the rules of "Task in", and each handler's defaults."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any
from uuid import UUID

import structlog
import uuid_utils.compat as uuid7
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from taskyard import storable, subscriptions
from taskyard.errors import InvalidInput, UnknownTaskType
from taskyard.handlers import MAX_DELAY, QUEUE_PATTERN, Handler
from taskyard.payloads import makes_defaults, with_made_defaults
from taskyard.plugins import Registry
from taskyard.queue_names import AllowedQueues
from taskyard.records import NewTask
from taskyard.storable import find_unstorable
from taskyard.subscriptions import Notify
from taskyard.validation import MAX_PROBLEMS, Instant, problems_of

log = structlog.get_logger(__name__)

MAX_METADATA_BYTES = 16 * 1024


def _different(tags: list[str]) -> list[str]:
    if len(set(tags)) != len(tags):
        raise PydanticCustomError("unique", "expected each tag once")
    return tags


def _small(metadata: dict[str, Any]) -> dict[str, Any]:
    try:
        sent = storable.to_json(metadata)
    except (TypeError, ValueError) as error:
        raise PydanticCustomError("json", "not JSON: {reason}", {"reason": storable.storable_text(error)}) from None
    if storable.is_longer(metadata, sent, MAX_METADATA_BYTES):
        raise PydanticCustomError("too_long", "expected at most 16 KiB of JSON")
    return metadata


Priority = Annotated[int, Field(strict=True, ge=0, le=9, description="0 to 9; 9 is the most urgent.")]
Tags = Annotated[
    list[Annotated[str, StringConstraints(strict=True, min_length=1, max_length=128)]],
    Field(max_length=32, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_different),
]
Metadata = Annotated[dict[str, Any], Field(description="Up to 16 KiB of JSON of your own."), AfterValidator(_small)]


class TaskIn(BaseModel):
    """A task as a client submits it. Null means "not given" for all but ``payload``."""

    model_config = ConfigDict(extra="forbid")

    type: Annotated[str, StringConstraints(strict=True)] = Field(description="An installed task type.")
    payload: Any = Field(description="The handler's input.")
    priority: Priority | None = Field(None, description="0 to 9; 9 is the most urgent. Default: the handler's, commonly 5.")
    queue: Annotated[str, StringConstraints(strict=True, pattern=f"^{QUEUE_PATTERN.pattern}$")] | None = Field(None, description="Default: the handler's.")
    run_at: Instant | None = Field(None, description="Not before this time.")
    delay: Annotated[float, Field(strict=True, ge=0, le=MAX_DELAY, allow_inf_nan=False)] | None = Field(
        None, description="Not before this many seconds from now."
    )
    expires_at: Instant | None = Field(None, description="If it has not started by then, it never does.")
    timeout: Annotated[float, Field(strict=True, gt=0, le=30 * 86400, allow_inf_nan=False)] | None = Field(None, description="Seconds that a run may take.")
    max_attempts: Annotated[int, Field(strict=True, ge=1, le=1000)] | None = Field(None, description="Runs that may fail before the task does.")
    tags: Tags | None = None
    metadata: Metadata | None = None
    unique_key: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=255)] | None = Field(
        None, description="At most one task that has not ended has this key."
    )

    notify: Notify | None = Field(None, repr=False, description="Who is told of this task, by notifiers that the operator allows for it.")

    @model_validator(mode="after")
    def _one_start(self) -> TaskIn:
        if self.run_at is not None and self.delay is not None:
            raise PydanticCustomError("one_start", "expected run_at or delay, not both")
        return self


def prepare(
    registry: Registry,
    fields: Mapping[str, Any],
    *,
    namespace: str = "default",
    id: UUID | None = None,
    parent_id: UUID | None = None,
    notifiers: Collection[str] = (),
    queues: AllowedQueues | None = None,
) -> NewTask:
    """Validate one task and fill in its handler's defaults. ``fields`` holds JSON values, as in "Task in".

    The payload is checked against the handler's model, as strictly as its JSON Schema says (a "1" is no number), and kept as it was sent: a
    handler's next version may read more of it than this one. Only values that a ``default_factory`` makes are added, such as a new UUID, so that
    all attempts have the same. ``notifiers`` are those that ``notify`` may name, ``queues`` those that ``queue`` may
    (None: any).

    Raises:
        UnknownTaskType: no installed plugin brings the type; carries near matches.
        InvalidInput: anything else is wrong; carries JSON pointers, such as /payload/url.
    """
    sent = dict(fields)
    if unstorable := find_unstorable(sent, exactly=True):
        raise InvalidInput("The task can't be stored.", [unstorable])
    type_ = sent.get("type")
    handler = registry.handler(type_) if isinstance(type_, str) else None
    problems: list[tuple[str, str]] = []
    task: TaskIn | None = None
    payload: Any = None
    try:
        task = TaskIn.model_validate(sent)
    except ValidationError as error:
        problems += problems_of(error, sent, TaskIn.model_fields)
    if handler is not None and "payload" in sent:
        wrong, payload = _read_payload(handler, sent["payload"])
        problems += wrong
    if task is not None and task.notify:
        problems += subscriptions.problems(registry, notifiers, task.notify)
    if task is not None and task.queue is not None and queues is not None and (refused := queues.problem(task.queue)):
        problems.append(("/queue", refused))
    if problems or task is None or handler is None:
        raise InvalidInput("The task is not as expected.", problems)
    return _with_defaults(task, payload, handler, namespace, id or uuid7.uuid7(), parent_id)


def prepare_all(
    registry: Registry,
    sent: Sequence[Any],
    *,
    namespace: str = "default",
    at: str = "/tasks",
    notifiers: Collection[str] = (),
    queues: AllowedQueues | None = None,
) -> Iterator[NewTask | None]:
    """Validate many tasks, one at each step; None is a wrong one. If any is wrong, the end is an error that points to what is wrong in all of them.

    Raises:
        UnknownTaskType, InvalidInput: as :func:`prepare` for the first that is wrong; carries pointers such as /tasks/17/payload/url.
    """
    first: InvalidInput | None = None
    problems: list[tuple[str, str]] = []
    holders: dict[str, int] = {}
    for index, fields in enumerate(sent):
        try:
            if not isinstance(fields, dict):
                raise InvalidInput(problems=[("", "expected a JSON object")])
            task = prepare(registry, fields, namespace=namespace, notifiers=notifiers, queues=queues)
            if task.unique_key is not None and (holder := holders.setdefault(task.unique_key, index)) != index:
                raise InvalidInput(problems=[("/unique_key", f"{at}/{holder} has the same")])
        except InvalidInput as error:
            first = first or error
            problems += [(f"{at}/{index}{pointer}", detail) for pointer, detail in error.problems]
            if len(problems) >= MAX_PROBLEMS:
                break
            yield None
        else:
            yield task
    if first is not None:
        if not isinstance(first, UnknownTaskType):
            first = InvalidInput("The tasks are not as expected; none of them is submitted.")
        first.problems = tuple(problems[:MAX_PROBLEMS])
        raise first


def _read_payload(handler: Handler[Any, Any], payload: Any) -> tuple[list[tuple[str, str]], Any]:
    """What is wrong with a payload, and the payload as it is stored."""
    try:
        sent = storable.to_json(payload)
    except (TypeError, ValueError) as error:
        return [("/payload", f"not JSON: {error}")], None
    if excess := storable.find_excess(payload, sent):
        return [(f"/payload{excess[0]}", excess[1])], None
    try:
        read = handler.payload.validate_json(sent, strict=True)
    except ValidationError as error:
        return problems_of(error, payload, handler.payload_schema().get("properties", ()), "/payload"), None
    except Exception as error:
        # A validator may raise anything. What its handler could not read either is not accepted.
        log.exception("payload.validator_failed", type=handler.type)
        return [("/payload", f"its validator raised {type(error).__name__}")], None
    return [], with_made_defaults(read, payload) if makes_defaults(handler.payload) else payload


def _with_defaults(task: TaskIn, payload: Any, handler: Handler[Any, Any], namespace: str, id: UUID, parent_id: UUID | None) -> NewTask:
    return NewTask(
        id=id,
        # As it was sent, also if that is an alias: while versions are mixed, it is the one name that all workers know.
        type=task.type,
        payload=payload,
        queue=handler.queue if task.queue is None else task.queue,
        lane=handler.lane,
        priority=handler.priority if task.priority is None else task.priority,
        timeout=handler.timeout if task.timeout is None else task.timeout,
        max_attempts=handler.retry.max_attempts if task.max_attempts is None else task.max_attempts,
        namespace=namespace,
        run_at=task.run_at.isoformat() if task.run_at else None,
        delay=task.delay,
        expires_at=task.expires_at.isoformat() if task.expires_at else None,
        tags=tuple(task.tags or ()),
        metadata=task.metadata or {},
        unique_key=task.unique_key,
        parent_id=parent_id,
        notify=subscriptions.rows(task.notify or ()),
    )
