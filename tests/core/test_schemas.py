"""A model of which clients can't be told is refused with its field, and every other one has a schema that any document can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import uuid4

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema

from taskyard import handler
from taskyard.schemas import UnusableSchema, schema_of

T = TypeVar("T")


def _model(name: str, extra: Any = None, **fields: Any) -> type[BaseModel]:
    """A model with these fields: each an annotation, or one and a default."""
    body = {field: value[1] for field, value in fields.items() if isinstance(value, tuple)}
    kinds = {field: value[0] if isinstance(value, tuple) else value for field, value in fields.items()}
    config = ConfigDict(json_schema_extra=extra)
    return type(name, (BaseModel,), {"__annotations__": kinds, "__module__": __name__, "model_config": config, **body})


class Work(BaseModel):
    call: Callable[[], int] = lambda: 1


class Mute:
    pass


def _holding_itself() -> dict[str, Any]:
    held: dict[str, Any] = {}
    held["held"] = held
    return held


def _raising(schema: dict[str, Any]) -> None:
    raise LookupError("no such translation")


class Limits(BaseModel):
    most: float = math.inf


#: The model, the field that is to blame, and what is said of it.
UNUSABLE: list[tuple[Any, str, str]] = [
    (Limits, "the field 'most' of Limits", "NaN and infinities"),
    (_model("Outer", items=list[Limits]), "the field 'most' of Limits", "NaN and infinities"),
    (_model("Noted", a=(float, Field(1, examples=[math.nan]))), "the field 'a' of Noted", "NaN and infinities"),
    (_model("Odd", {"example": {"when": datetime(2030, 1, 1)}}, a=int), "Odd", "a value of the type datetime is not JSON"),
    (_model("Called", {"example": print}, a=int), "Called", "is not JSON"),
    (_model("Sets", {"x": {1, 2}}, a=int), "Sets", "a value of the type set"),
    (_model("Keys", {"x": {(1, 2): 3}}, a=int), "Keys", "a name is a value of the type tuple"),
    (_model("Long", a=(int, 10**5000)), "the field 'a' of Long", "digits"),
    (_model("Torn", a=(int, Field(1, description="\ud800"))), "the field 'a' of Torn", "unpaired surrogate"),
    (_model("Held", _holding_itself(), a=int), "Held", ""),
    (_model("Raising", _raising, a=int), "Raising", "no such translation"),
    (Work, "the field 'call' of Work", "no JSON Schema can be built"),
    (_model("Deep", inner=(dict[str, list[Work]], {})), "the field 'call' of Work", "no JSON Schema can be built"),
    (_model("Alien", a=Annotated[Any, WithJsonSchema({"type": "money"})]), "the field 'a' of Alien", "it is not valid"),
    (_model("Tagged", {"discriminator": "kind"}, a=int), "Tagged", "it is not valid"),
    (_model("Mapped", inner=Annotated[Any, WithJsonSchema({"discriminator": {"propertyName": "a", "mapping": {"b": 5}}})]), "the field 'inner'", "not valid"),
    (_model("Marked", {"xml": 1}, a=int), "Marked", "it is not valid"),
    (_model("Lost", a=Annotated[Any, WithJsonSchema({"$ref": "#/definitions/Gone"})]), "the field 'a' of Lost", "'#/definitions/Gone', which is not there"),
    (_model("Misled", {"allOf": [{"$ref": "#/definitions/Gone"}]}, a=int), "Misled", "'#/definitions/Gone', which is not there"),
]


@pytest.mark.parametrize(("model", "field", "problem"), [pytest.param(*case, id=case[0].__name__) for case in UNUSABLE])
def test_a_model_of_which_clients_can_not_be_told_is_refused_with_its_field(model: Any, field: str, problem: str) -> None:
    with pytest.raises(UnusableSchema) as refused:
        schema_of(model)
    assert field in str(refused.value)
    assert problem in str(refused.value)


class BlackCat(BaseModel):
    pet_type: Literal["cat"]
    color: Literal["black"]


class WhiteCat(BaseModel):
    pet_type: Literal["cat"]
    color: Literal["white"]


class Dog(BaseModel):
    pet_type: Literal["dog"]


Cat = Annotated[BlackCat | WhiteCat, Field(discriminator="color")]
Pet = Annotated[Cat | Dog, Field(discriminator="pet_type")]


class Tree(BaseModel):
    branches: list[Tree] = []


class Page(BaseModel, Generic[T]):
    items: list[T]


class Colour(Enum):
    RED = "red"


USABLE: list[Any] = [
    Pet,
    Tree,
    Page[Tree],
    _model("Größe", a=int),
    _model("Defaults", a=(Any, Mute()), b=(Decimal, Decimal("NaN")), c=(bytes, b"\xff"), d=(date, date(2030, 1, 1)), e=(Colour, Colour.RED)),
    _model("Bounded", a=(float, Field(1, lt=math.inf)), b=(int, 1)),
    _model("Made", a=(Any, Field(default_factory=uuid4, examples=[datetime(2030, 1, 1)]))),
    _model("Named", discriminator=(str, "xml"), xml=(int, 1), mapping=(dict[str, int], {})),
    _model("Told", {"examples": [{"$ref": "#/nowhere"}]}, a=(float, Field(1, allow_inf_nan=False))),
]


@pytest.mark.parametrize("kind", USABLE)
def test_every_other_model_has_a_schema_that_is_json_and_valid(kind: Any) -> None:
    schema = schema_of(TypeAdapter(kind))
    json.dumps(schema, allow_nan=False, ensure_ascii=False).encode()
    Draft202012Validator.check_schema(schema)


def test_a_discriminator_only_names_options_that_have_a_name() -> None:
    schema = schema_of(TypeAdapter(Pet))
    assert "discriminator" not in schema
    assert [option.get("discriminator", {}).get("propertyName") for option in schema["oneOf"]] == ["color", None]
    assert Draft202012Validator(schema).is_valid({"pet_type": "cat", "color": "white"})


BUILT: list[int] = []
Once = _model("Once", lambda schema: BUILT.append(1), a=int)


def test_a_schema_is_built_once_and_what_a_caller_does_to_it_reaches_no_other() -> None:
    def once(payload: Any) -> None:
        """Do nothing."""

    once.__annotations__["payload"] = Once
    declared = handler("t.once")(once)
    declared.payload_schema().clear()
    assert declared.payload_schema()["title"] == "Once"
    assert len(BUILT) == 1
