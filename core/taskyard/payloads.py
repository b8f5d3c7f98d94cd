"""From a payload as Python has it (a model, a dataclass, a dict with a date in it) to the JSON that is sent, and back without a loss.

Pydantic's own JSON is made for readers: it masks secrets, adds computed fields, leaves out excluded ones and uses the names of
serialization. What is sent must validate again, and to an equal value. The one place for the client, ``Context.submit``, ``taskyard.submit``
and the testing kit; and for the defaults that a factory makes anew at each reading, which a task stores once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeGuard

from pydantic import AliasChoices, AliasPath, BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic.types import Secret, SecretBytes, SecretStr
from pydantic_core import PydanticSerializationError, from_json, to_json, to_jsonable_python

from taskyard.errors import InvalidInput
from taskyard.storable import storable_text
from taskyard.validation import problems_of

if TYPE_CHECKING:
    from pydantic import RootModel

_PLAIN = (str, int, float, bool, type(None))
_SECRETS = (Secret, SecretStr, SecretBytes)
_TEXTS = (str, bytes, bytearray, memoryview)
_MASK = str(SecretStr("x"))
_MISSING: Any = object()
#: Kinds of Pydantic's schemas whose JSON is read as an equal value, unless a serializer says otherwise.
_SIMPLE = {
    *("model", "model-fields", "model-field", "default", "nullable", "list", "dict", "definitions", "definition-ref"),
    *("str", "int", "float", "bool", "none", "uuid", "datetime", "date", "time", "literal", "enum"),
}
#: Factories whose values are equal each time.
_STEADY = (list, dict, set, frozenset, tuple, str, int, float, bool, bytes)


def payload_json(payload: Any) -> Any:
    """The JSON value of a payload. A value that is JSON already is given back as it is; the service tells what is wrong with it.

    Raises:
        InvalidInput: it has something that JSON can't hold, or what would be sent is refused, or read as something else, by its own model.
    """
    try:
        if type(payload) in _PLAIN or (isinstance(payload, dict | list) and not _has_more_than_json(payload)):
            return payload
        if isinstance(payload, BaseModel) and _is_simple(type(payload)):
            # What most payloads are: a thirtieth of the time.
            return payload.model_dump(mode="json", by_alias=True)
        sent = _json(payload)
    except RecursionError as error:
        raise InvalidInput("The payload can't be sent as JSON: it contains itself, or is nested too deeply.", [("/payload", "no JSON")]) from error
    except (PydanticSerializationError, UnicodeError, TypeError, ValueError) as error:
        hint = " For bytes that are no text, set ser_json_bytes and val_json_bytes to 'base64' in the model's config." if "utf" in str(error) else ""
        raise InvalidInput(f"The payload can't be sent as JSON: {storable_text(error, 500)}.{hint}", [("/payload", "no JSON")]) from error
    _check(payload, sent)
    return sent


@lru_cache(maxsize=10_000)
def _is_simple(kind: type[BaseModel]) -> bool:
    """Does Pydantic's own JSON of this model always read as an equal one? Only of those whose every part is known to."""
    return _is_simple_schema(kind.__pydantic_core_schema__, set())


def _is_simple_schema(schema: Any, seen: set[int]) -> bool:
    if id(schema) in seen:
        return True
    seen.add(id(schema))
    if isinstance(schema, list | tuple):
        return all(_is_simple_schema(part, seen) for part in schema)
    if not isinstance(schema, dict):
        return True
    kind = schema.get("type")
    if isinstance(kind, str) and (kind not in _SIMPLE or "serialization" in schema or schema.get("computed_fields") or schema.get("extras_schema")):
        return False
    if kind == "model-field" and (schema.get("serialization_exclude") or schema.get("serialization_alias") != schema.get("validation_alias")):
        return False
    if kind == "model" and (schema.get("config", {}).get("extra_fields_behavior") == "allow" or schema.get("config", {}).get("validate_by_alias") is False):
        return False
    return all(
        _is_simple_schema(part, seen) for name, part in schema.items() if name not in ("metadata", "default", "default_factory", "cls", "expected", "members")
    )


def _has_more_than_json(value: Any) -> bool:
    if type(value) is dict:
        return any(type(key) is not str or _has_more_than_json(item) for key, item in value.items())
    if type(value) is list:
        return any(map(_has_more_than_json, value))
    return type(value) not in _PLAIN


def _check(payload: Any, sent: Any) -> None:
    """Refuse what its own model would refuse, or read as something else."""
    if not isinstance(payload, BaseModel):
        return
    kind = type(payload)
    try:
        text = to_json(sent)
        again = kind.model_validate_json(text)
        differs = next(_differences(sent, _json(again), ""), None)
        # A mask is written as a mask again.
        masked = _MASK.encode() in text and again != payload
    except ValidationError as error:
        problems = problems_of(error, sent, kind.model_fields, "/payload")
        raise InvalidInput(f"The model {kind.__name__} does not accept its own JSON: {problems[0][0]}: {problems[0][1]}", problems) from error
    except Exception as error:  # a validator or a serializer of its own
        raise InvalidInput(f"The model {kind.__name__} does not accept its own JSON: {storable_text(error, 500)}", [("/payload", "not accepted")]) from error
    if masked:
        raise InvalidInput(f"The model {kind.__name__} writes a secret as {_MASK}: let its serializer write what it is to read", [("/payload", "masked")])
    if differs is not None:
        pointer = f"/payload{differs}"
        raise InvalidInput(f"The model {kind.__name__} reads its own JSON as something else at {pointer}: it would change on its way", [(pointer, "changes")])


def _differences(one: Any, other: Any, pointer: str) -> Iterator[str]:
    """Where two JSON values differ. Arrays made of sets may come in another order."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from _differences(one[key], other[key], f"{pointer}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        if any(item not in other for item in one):
            yield from (f"{pointer}/{place}" for place, item in enumerate(one) if item not in other)
    elif one != other and not (one != one and other != other):
        yield pointer


def _is_root_model(value: Any) -> TypeGuard[RootModel[Any]]:
    # Not isinstance: to import RootModel builds a model, and that reads the entry points of all distributions, broken ones too.
    return isinstance(value, BaseModel) and value.__pydantic_root_model__


# --- writing --------------------------------------------------------------------------------------------------------------


def _json(value: Any, written: Any = _MISSING, bytes_as: tuple[str, str] = ("utf8", "utf8")) -> Any:
    """A value as JSON that its type reads again. ``written`` is what Pydantic has made of it as a part of a model, by the names of the fields."""
    if isinstance(value, _SECRETS):
        inner = _json(value.get_secret_value(), _MISSING, bytes_as)
        return to_json(inner).decode() if written == f'"{_MASK}"' else inner
    if isinstance(written, str) and _MASK in written and not isinstance(value, _TEXTS):
        return _unmasked_text(value, written, bytes_as)
    if _is_root_model(value):
        return _json(value.root, _written(value) if written is _MISSING else written, bytes_as)
    if isinstance(value, BaseModel):
        return _of_model(value, _written(value) if written is _MISSING else written)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _of_dataclass(value, TypeAdapter(type(value)).dump_python(value, mode="json", round_trip=True) if written is _MISSING else written)
    if isinstance(value, Mapping):
        return _of_mapping(value, written, bytes_as)
    if isinstance(value, Iterator) or (isinstance(value, Collection) and not isinstance(value, _TEXTS)):
        if written is _MISSING:
            return [_json(item, _MISSING, bytes_as) for item in value]
        whole = isinstance(written, list) and isinstance(value, Collection) and len(written) == len(value)
        return [_json(item, there, bytes_as) for item, there in zip(value, written, strict=True)] if whole else written
    if isinstance(value, bytes) and (written is _MISSING or bytes_as[0] != bytes_as[1]):
        return to_jsonable_python(value, bytes_mode=bytes_as[1])  # type: ignore[arg-type]  # one of Pydantic's three words
    return to_jsonable_python(value) if written is _MISSING else written


def _unmasked_text(value: Any, written: str, bytes_as: tuple[str, str]) -> str:
    """A value whose JSON is a text of JSON, as that of ``Json[list[SecretStr]]``, with the secrets in it."""
    try:
        inner = from_json(written)
    except ValueError:  # the text of a serializer of its own
        return written
    return to_json(_json(value, inner, bytes_as)).decode()


def _written(model: BaseModel) -> Any:
    return model.model_dump(mode="json", by_alias=False, round_trip=True, warnings=False)


def _of_mapping(value: Mapping[Any, Any], written: Any, bytes_as: tuple[str, str]) -> Any:
    if written is _MISSING:
        made = {_key(key): _json(item, _MISSING, bytes_as) for key, item in value.items()}
        if len(made) < len(value):
            raise ValueError(f"two of its names are the same text: {storable_text(list(value), 200)}")
        return made
    if not isinstance(written, dict) or len(written) != len(value):
        return written
    return {key: _json(item, there, bytes_as) for (key, there), item in zip(written.items(), value.values(), strict=True)}


def _key(key: Any) -> str:
    if isinstance(key, Collection) and not isinstance(key, _TEXTS):
        raise TypeError(f"a name in JSON is a text, not {storable_text(repr(key), 200)}")
    return key if isinstance(key, str) else next(iter(to_jsonable_python({key: None})))


def _of_model(model: BaseModel, written: Any) -> Any:
    fields = type(model).model_fields
    extra = model.model_extra or {}
    # A serializer of its own may have made anything of it.
    if not isinstance(written, dict) or not written.keys() <= {*fields, *extra}:
        return written
    config = type(model).model_config
    bytes_as = (config.get("ser_json_bytes", "utf8"), config.get("val_json_bytes", "utf8"))
    by_alias = config.get("validate_by_alias") is not False
    made: dict[str, Any] = {}
    for name, field in fields.items():
        if name in written or field.exclude:
            _put(made, _read_from(name, field) if by_alias else [name], _json(getattr(model, name), written.get(name, _MISSING), bytes_as))
    return made | {name: _json(item, written.get(name, _MISSING), bytes_as) for name, item in extra.items()}


def _of_dataclass(value: Any, written: Any) -> Any:
    fields = {field.name: field for field in dataclasses.fields(value) if field.init}
    if not isinstance(written, dict):
        return written
    known: Mapping[str, FieldInfo] = getattr(type(value), "__pydantic_fields__", {})
    made: dict[str, Any] = {}
    for name in fields:
        path: list[str | int] = _read_from(name, known[name]) if name in known else [name]
        _put(made, path, _json(getattr(value, name), written.get(name, _MISSING)))
    return made


def _read_from(name: str, field: FieldInfo) -> list[str | int]:
    """Where validation reads a field: its alias, the first of several, or a path of keys."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        alias = next((choice for choice in alias.choices if isinstance(choice, str)), alias.choices[0])
    return list(alias.path) if isinstance(alias, AliasPath) else [name if alias is None else alias]


def _put(made: dict[str, Any], path: list[str | int], value: Any) -> None:
    here: Any = made
    for step, following in zip(path, [*path[1:], None], strict=True):
        default: Any = value if following is None else [] if isinstance(following, int) else {}
        if isinstance(here, list) and isinstance(step, int):
            here.extend([None] * (step + 1 - len(here)))
            here[step] = default if following is None or here[step] is None else here[step]
        elif following is None:
            here[step] = value
        else:
            here.setdefault(step, default)
        here = here[step]


# --- defaults that a factory makes ----------------------------------------------------------------------------------------


def with_made_defaults(read: Any, sent: Any) -> Any:
    """``sent`` with what factories have made for the fields that it lacks, such as ``Field(default_factory=uuid4)``.

    ``read`` is what validation has made of it. Stored so, a task's attempts all have the same values. A plain default is not stored: the
    next version of a handler may have another one.
    """
    if _is_root_model(read):
        return with_made_defaults(read.root, sent)
    if isinstance(read, BaseModel) and isinstance(sent, dict):
        return _filled(read, sent)
    if dataclasses.is_dataclass(read) and isinstance(sent, dict):
        return _filled_dataclass(read, sent)
    if isinstance(read, list | tuple) and isinstance(sent, list) and len(read) == len(sent):
        return [with_made_defaults(one, there) for one, there in zip(read, sent, strict=True)]
    if isinstance(read, dict) and isinstance(sent, dict) and len(read) == len(sent):
        return {key: with_made_defaults(one, there) for one, (key, there) in zip(read.values(), sent.items(), strict=True)}
    return sent


def _filled(read: BaseModel, sent: dict[str, Any]) -> dict[str, Any]:
    made = dict(sent)
    for name, field in type(read).model_fields.items():
        path = _read_from(name, field)
        if name not in read.model_fields_set:
            if _makes(field):
                by_alias = type(read).model_config.get("validate_by_alias") is not False
                _put(made, path if by_alias else [name], _json(getattr(read, name)))
        elif found := next((key for key in (path[0], name, *_choices(field)) if key in sent), None):
            made[str(found)] = with_made_defaults(getattr(read, name), sent[str(found)]) if len(path) == 1 else sent[str(found)]
    return made


def _filled_dataclass(read: Any, sent: dict[str, Any]) -> dict[str, Any]:
    known: Mapping[str, FieldInfo] = getattr(type(read), "__pydantic_fields__", {})
    made = dict(sent)
    for field in dataclasses.fields(read):
        names = [_read_from(field.name, known[field.name])[0], field.name] if field.name in known else [field.name]
        if found := next((name for name in names if name in sent), None):
            made[str(found)] = with_made_defaults(getattr(read, field.name), sent[str(found)])
        elif field.init and field.default_factory is not dataclasses.MISSING and field.default_factory not in _STEADY:
            made[str(names[0])] = _json(getattr(read, field.name))
    return made


def _choices(field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    return [choice for choice in alias.choices if isinstance(choice, str)] if isinstance(alias, AliasChoices) else []


def _makes(field: FieldInfo) -> bool:
    return field.default_factory is not None and field.default_factory not in _STEADY


@lru_cache(maxsize=10_000)
def makes_defaults(kind: TypeAdapter[Any]) -> bool:
    """Has a payload's type fields whose default a factory makes? Else nothing has to be filled in."""
    return any(_schemas_that_make(kind.core_schema, set()))


def _schemas_that_make(schema: Any, seen: set[int]) -> Iterator[bool]:
    if id(schema) in seen:
        return
    seen.add(id(schema))
    if isinstance(schema, dict):
        if (factory := schema.get("default_factory")) is not None and factory not in _STEADY:
            yield True
        for part in schema.values():
            yield from _schemas_that_make(part, seen)
    elif isinstance(schema, list | tuple):
        for part in schema:
            yield from _schemas_that_make(part, seen)
