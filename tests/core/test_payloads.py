"""A payload arrives as it was given: its model, whatever it is made of, writes what it reads again as an equal value, or nothing is sent."""

from __future__ import annotations

import dataclasses
import enum
import json
import uuid
from collections import deque
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    TypeAdapter,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel
from typing_extensions import TypedDict

from taskyard import Context, InvalidInput, handler
from taskyard.client.submissions import New
from taskyard.payloads import _is_simple, makes_defaults, payload_json
from taskyard.plugins import load_plugins
from taskyard.submission import prepare
from taskyard.testing import run_handler


class Password(BaseModel):
    password: SecretStr
    key: SecretBytes = SecretBytes(b"k")
    pin: Secret[int] = Secret(7)


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    a: int

    @computed_field  # type: ignore[prop-decorator]  # as Pydantic's documentation has it
    @property
    def double(self) -> int:
        return self.a * 2


class Jsoned(BaseModel):
    j: Json[dict[str, int]]


class JsonedSecrets(BaseModel):
    model: Json[Password]
    values: list[Json[list[SecretStr]]]
    value: Json[SecretStr]
    maybe: Json[dict[str, SecretStr]] | None = None


class Queued(BaseModel):
    queue: deque[SecretStr]
    inside: list[dict[str, deque[Password]]]


class ReadBy(BaseModel):
    value: str = Field(validation_alias=AliasChoices("val", "v"))
    deep: int = Field(1, validation_alias=AliasPath("outer", "inner", 1))


class WrittenBy(BaseModel):
    value: str = Field(serialization_alias="valueOut")


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="forbid")

    first_name: str


class ByName(BaseModel):
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=False)

    value: int = Field(alias="other")


class Excluded(BaseModel):
    hidden: int = Field(exclude=True)
    inside: Password | None = Field(None, exclude=True)


class Base64(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    b: bytes


class ReadAsBase64(BaseModel):
    model_config = ConfigDict(val_json_bytes="base64")

    b: bytes


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    when: date = date(2026, 1, 2)


class Named(TypedDict):
    name: str
    secret: SecretStr


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    token: SecretStr


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    ratio: float


class Nested(BaseModel):
    model_config = ConfigDict(extra="allow")

    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    many: dict[int, list[Cat | Dog]]
    points: tuple[Point, ...]
    named: Named
    color: Color
    price: Decimal
    at: datetime
    took: timedelta
    path: Path
    id: uuid.UUID
    names: frozenset[str]
    camel: Camel
    maybe: Password | None = None


class Secrets(RootModel[list[Password]]):
    """A list."""


class Own(BaseModel):
    """Writes itself in its own way, and reads that."""

    parts: list[int]

    @field_serializer("parts")
    def _joined(self, parts: list[int]) -> str:
        return ",".join(map(str, parts))

    @field_validator("parts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value


CAT = Cat(token=SecretStr("meow"))
NESTED = Nested(
    pet=CAT,
    many={3: [CAT, Dog(ratio=0.5)]},
    points=(Point(1), Point(2, date(2026, 3, 4))),
    named={"name": "n", "secret": SecretStr("s")},
    color=Color.RED,
    price=Decimal("12345678901234567890.10"),
    at=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
    took=timedelta(days=1, microseconds=1),
    path=Path("/a/b"),
    id=uuid.UUID(int=5),
    names=frozenset({"a", "b", "c"}),
    camel=Camel(first_name="Ann"),
    maybe=Password(password=SecretStr("ö")),
    more={"a": [1]},
)
MODELS: list[BaseModel] = [
    Password(password=SecretStr("hunter2")),
    Computed(a=2),
    Jsoned.model_validate({"j": '{"a": 1}'}),
    JsonedSecrets.model_validate({"model": '{"password": "a"}', "values": ['["b", "c"]'], "value": '"d"', "maybe": '{"e": "f"}'}),
    Queued(queue=deque([SecretStr("a")]), inside=[{"b": deque([Password(password=SecretStr("c"))])}]),
    ReadBy.model_validate({"val": "x", "outer": {"inner": [0, 5]}}),
    WrittenBy(value="x"),
    Camel(first_name="Ann"),
    ByName.model_validate({"value": 1}),
    Excluded(hidden=1, inside=Password(password=SecretStr("in"))),
    Base64(b=b"\xff\x00"),
    ReadAsBase64(b=b"text"),
    NESTED,
    Secrets([Password(password=SecretStr("a")), Password(password=SecretStr("b"))]),
    Own(parts=[1, 2]),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_a_model_is_read_as_an_equal_one_from_what_is_sent(model: BaseModel) -> None:
    sent = payload_json(model)
    assert type(model).model_validate_json(json.dumps(sent)) == model
    assert "****" not in json.dumps(sent)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(Point(1), Point), ({"name": "n", "secret": SecretStr("s")}, Named), ([CAT], list[Cat]), ({"at": datetime(2026, 1, 1, tzinfo=UTC)}, dict[str, datetime])],
)
def test_dataclasses_typed_dicts_and_containers_are_written_likewise(value: Any, kind: Any) -> None:
    assert TypeAdapter(kind).validate_json(json.dumps(payload_json(value))) == value


@pytest.mark.parametrize(
    "secrets", [deque([SecretStr("a")]), iter([SecretStr("a")]), {"it": SecretStr("a")}.values()], ids=lambda secrets: type(secrets).__name__
)
def test_secrets_in_a_collection_of_any_kind_are_sent(secrets: Iterable[SecretStr]) -> None:
    assert payload_json({"secrets": secrets}) == {"secrets": ["a"]}


def test_a_secret_that_looks_like_a_mask_is_a_secret() -> None:
    assert payload_json(Password(password=SecretStr("**********")))["password"] == "**********"


class Bytesy(BaseModel):
    b: bytes


class Hashing(BaseModel):
    word: str

    @field_validator("word")
    @classmethod
    def _hash(cls, value: str) -> str:
        return f"#{value}"


class Masking(BaseModel):
    secret: SecretStr

    @model_serializer
    def _write(self) -> dict[str, str]:
        return {"written_as": str(self.secret)}

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return {"secret": value["written_as"]} if "written_as" in value else value


class OneWay(BaseModel):
    n: int

    @field_serializer("n")
    def _words(self, n: int) -> str:
        return "many"


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Bytesy(b=b"\xff"), "can't be sent as JSON: .*utf.*set ser_json_bytes and val_json_bytes to 'base64'"),
        (Hashing(word="a"), "Hashing reads its own JSON as something else at /payload/word: it would change on its way"),
        (Masking(secret=SecretStr("a")), r"Masking writes a secret as \*+: let its serializer write what it is to read"),
        (OneWay(n=3), "OneWay does not accept its own JSON: /payload/n: Input should be a valid integer"),
    ],
)
def test_what_would_not_arrive_as_it_was_given_is_refused_before_it_is_sent(model: BaseModel, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        payload_json(model)


# --- every door -----------------------------------------------------------------------------------------------------------


@handler("pay.login")
def login(payload: Password) -> str:
    """Tell the password."""
    return payload.password.get_secret_value()


@handler("pay.parent")
def parent(payload: None, ctx: Context) -> None:
    """Submit one that has a secret."""
    ctx.submit(login, Password(password=SecretStr("from the parent")))


def test_every_door_sends_the_secret_itself() -> None:
    given = Password(password=SecretStr("hunter2"))
    assert run_handler(login, given).result == "hunter2"
    ctx = Context(task_id=uuid.uuid4(), type="pay.parent")
    ctx.submit(login, given)
    assert ctx.submissions[0].payload == {"password": "hunter2", "key": "k", "pin": 7}
    assert New(login, given).body()["payload"]["password"] == "hunter2"


# --- defaults -------------------------------------------------------------------------------------------------------------


class Line(BaseModel):
    id: uuid.UUID = Field(default_factory=uuid.uuid4, alias="lineId")
    note: str = "plain"


@dataclasses.dataclass
class Stamp:
    key: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)


class Order(BaseModel):
    id: uuid.UUID = Field(default_factory=uuid.uuid4)
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    secret: SecretStr = Field(default_factory=lambda: SecretStr(uuid.uuid4().hex))
    lines: list[Line] = Field(default_factory=list)
    by_name: dict[str, Line] = Field(default_factory=dict)
    stamp: Stamp | None = None


class Plain(BaseModel):
    tags: list[str] = Field(default_factory=list)
    n: int = 3


def _stored(kind: Any, sent: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is kept of a payload of this type."""
    registry = load_plugins(only=["demo"])
    made = handler("pay.order")(lambda payload: None) if kind is None else _handler_of(kind)
    monkeypatch.setitem(registry.names, "pay.order", made)
    return prepare(registry, {"type": "pay.order", "payload": sent}).payload


def _handler_of(kind: Any) -> Any:
    def work(payload: Any) -> None:
        """Work."""

    work.__annotations__["payload"] = kind
    return handler("pay.order")(work)


def test_what_a_factory_makes_is_stored_at_the_submission_so_that_all_attempts_have_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = _stored(Order, {"lines": [{}, {"lineId": str(uuid.UUID(int=1))}], "by_name": {"a": {}}, "stamp": {}}, monkeypatch)
    first, second = (TypeAdapter(Order).validate_json(json.dumps(stored)) for _ in range(2))
    assert first == second
    assert first.lines[1].id == uuid.UUID(int=1)
    assert sorted(stored) == ["at", "by_name", "id", "lines", "secret", "stamp"]
    assert sorted(stored["lines"][0]) == ["lineId"], "a plain default is the next version's affair"


def test_a_payload_without_such_fields_is_stored_as_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not makes_defaults(TypeAdapter(Plain))
    assert _stored(Plain, {}, monkeypatch) == {}
    assert _stored(Order, {"id": str(uuid.UUID(int=2)), "at": "2026-01-01T00:00:00Z", "secret": "s"}, monkeypatch) == {
        "id": str(uuid.UUID(int=2)),
        "at": "2026-01-01T00:00:00Z",
        "secret": "s",
    }


class Simple(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: str = Field(alias="link", min_length=1)
    tags: list[str] | None = None
    at: datetime
    id: uuid.UUID
    inner: dict[str, list[Color]] = {}


def test_a_simple_model_is_written_by_pydantic_alone_and_no_other_is_taken_for_one() -> None:
    simple = Simple(link="x", at=datetime(2026, 1, 1, tzinfo=UTC), id=uuid.UUID(int=1), inner={"a": [Color.RED]})
    assert _is_simple(Simple)
    assert payload_json(simple) == {"link": "x", "tags": None, "at": "2026-01-01T00:00:00Z", "id": str(uuid.UUID(int=1)), "inner": {"a": ["red"]}}
    assert [type(model).__name__ for model in MODELS if _is_simple(type(model))] == ["Camel"]
