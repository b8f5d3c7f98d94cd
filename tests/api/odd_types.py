"""Task types as plugins may bring them, each with something that a generator of clients can stumble over."""

from __future__ import annotations

import enum
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue, RootModel, SecretStr

from taskyard import handler
from taskyard.plugins import Plugin, Registry

from .conftest import hooks

T = TypeVar("T")


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str | None = None


class Color(enum.Enum):
    RED = "red"
    GREEN = "light green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Tree(BaseModel):
    """Refers to itself."""

    label: str = "leaf"
    branches: list[Tree] = []


class Page(BaseModel, Generic[T]):
    items: list[T]
    next: str | None = None


class Everything(BaseModel):
    """One field of each kind."""

    model_config = ConfigDict(extra="forbid")

    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    pets: list[Cat | Dog] = []
    either: int | str = 3
    color: Color = Color.RED
    level: Level = Level.LOW
    pair: tuple[int, str] = (1, "one")
    tree: Tree | None = None
    sizes: dict[str, float] = {}
    price: Decimal = Decimal("1.50")
    when: datetime | None = None
    day: date | None = None
    pause: timedelta | None = None
    id: UUID | None = None
    data: bytes = b""
    secret: SecretStr | None = None
    words: set[str] = set()
    nothing: None = None
    anything: Any = None
    json_value: JsonValue = None
    class_: str = Field("a", alias="class")
    default: str = "a property of this name"
    title: str = "another one"


class Words(BaseModel):
    """There is one of this name in the plugin demo, too."""

    several: list[str]


class Names(RootModel[list[str]]):
    """A list by a name."""


@handler("odd.everything")
def everything(payload: Everything) -> Everything:
    """Take one of each kind."""
    return payload


@handler("odd.union")
def union(payload: Cat | Dog) -> Cat | Dog | None:
    """Take one of two models, and answer one, or nothing."""
    return payload


@handler("odd.page")
def page(payload: Page[Cat]) -> Page[Dog]:
    """Take a generic model."""
    return Page[Dog](items=[])


@handler("odd.words", aliases=["odd.old-words"])
def words(payload: Words) -> Names:
    """Have an older name, and a model by a name that another plugin uses."""
    return Names(payload.several)


@handler("odd-words")
def same_words(payload: list[Words]) -> list[int]:
    """Be called as another type is, but for punctuation."""
    return [len(payload)]


@handler("in")
def reserved(payload: str) -> None:
    """Be called as a schema of the document's own would be: TaskIn."""


@handler("odd.any")
def anything(payload: Any) -> Any:
    """Take and answer whatever comes."""
    return payload


@handler("odd.none")
def none(payload: None) -> None:
    """Take and answer nothing."""


HANDLERS = (everything, union, page, words, same_words, reserved, anything, none)


def with_odd_types(registry: Registry) -> Registry:
    """The plugins of ``registry``, and one that brings all of these."""
    odd = Plugin("odd", "taskyard-odd", "1.0", handlers=[each.owned_by("odd") for each in HANDLERS])
    return Registry([*registry.plugins, odd], hooks())
