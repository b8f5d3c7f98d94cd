"""Odd payloads by Hypothesis (the extra ``fuzz``): each must be accepted, or refused with a validation error and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from taskyard.errors import TaskyardError

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

#: Arrays and objects of so many members, and schemas that contain themselves so deep.
_MEMBERS = 4
_DEPTH = 4


def first_odd_answer(payload: TypeAdapter[Any], schema: dict[str, Any], runs: int) -> str | None:
    """What the first payload of ``runs`` that is answered by something else than a validation error gets; the smallest such one.

    Raises:
        TaskyardError: Hypothesis is not installed.
    """
    try:
        from hypothesis import HealthCheck, Phase, given, settings
    except ModuleNotFoundError as error:
        raise TaskyardError("Fuzzing needs Hypothesis: pip install 'taskyard[fuzz]'") from error
    found: dict[str, str] = {}

    @settings(
        max_examples=runs,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
    )
    @given(_near(schema))
    def try_one(candidate: Any) -> None:
        text = json.dumps(candidate)
        try:
            payload.dump_json(payload.validate_json(text))
        except ValidationError:
            return
        except Exception as error:
            found["told"] = f"the payload {text} is answered by {type(error).__name__}: {error}"
            raise

    try:
        try_one()
    except Exception:
        # The last one that was tried is the smallest that Hypothesis found; anything else that it raises is told as it is.
        if "told" not in found:
            raise
    return found.get("told")


def _near(schema: dict[str, Any]) -> SearchStrategy[Any]:
    """JSON that fits the schema by and large, and sometimes anything."""
    from hypothesis import strategies as st

    numbers = st.integers() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    texts = st.text(st.characters(exclude_categories=["Cs"]))
    leaves = st.none() | st.booleans() | numbers | texts
    anything = st.recursive(leaves, lambda inner: st.lists(inner, max_size=_MEMBERS) | st.dictionaries(texts, inner, max_size=_MEMBERS), max_leaves=8)
    plain = {"null": st.none(), "boolean": st.booleans(), "integer": st.integers() | numbers, "number": numbers, "string": texts}

    def fitting(part: Any, depth: int) -> SearchStrategy[Any]:
        if not isinstance(part, dict) or depth > _DEPTH:
            return anything
        known = [
            *part.get("examples", []),
            *part.get("enum", []),
            *([part["const"]] if "const" in part else []),
            *([part["default"]] if "default" in part else []),
        ]
        shapes = [st.sampled_from(known)] if known else []
        if str(part.get("$ref", "")).startswith("#/$defs/"):
            shapes.append(fitting(schema.get("$defs", {}).get(part["$ref"].removeprefix("#/$defs/")), depth + 1))
        shapes += [fitting(choice, depth + 1) for key in ("anyOf", "oneOf", "allOf") for choice in part.get(key, [])]
        if part.get("type") in plain:
            shapes.append(plain[part["type"]])
        if part.get("type") == "array":
            shapes.append(st.lists(fitting(part.get("items"), depth + 1), max_size=_MEMBERS))
        if part.get("type") == "object":
            members = {name: fitting(inner, depth + 1) for name, inner in part.get("properties", {}).items()}
            needed = {name: members.pop(name) for name in part.get("required", []) if name in members}
            shapes.append(st.fixed_dictionaries(needed, optional=members))
            shapes.append(st.fixed_dictionaries({}, optional=needed | members))
            shapes.append(st.dictionaries(texts, anything, max_size=_MEMBERS))
        # Mostly what fits: what a type check refuses at once never reaches a model's own validators.
        return st.one_of(*shapes, *shapes, anything)

    return fitting(schema, 0)
