"""docs/reference/handlers.md names every parameter, field and error that a handler's author meets, and nothing else."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_args

import pytest

import taskyard
from taskyard import Context, Handler, Interrupted, InvalidInput, Retry, RetryLater, TaskCancelled, TaskFailed, UnknownTaskType, errors, handler, testing
from taskyard.task_options import Options
from taskyard.testing import HandlerRun, run_handler
from taskyard.testing.runs import RunOptions

from .markdown import ROOT, blocks, names, prose, rows

PAGE = ROOT / "docs" / "reference" / "handlers.md"


def listed(after: str) -> list[str]:
    """The names in the first column of a section's table."""
    return [name for row in rows(PAGE, after) for name in names(row[0])]


def parameters(function: Callable[..., Any]) -> set[str]:
    return {name for name in inspect.signature(function).parameters if name != "self"}


def public(of: Any) -> set[str]:
    """The fields and methods of a class that its users may use."""
    fields = {field.name for field in dataclasses.fields(of)}
    return {name for name in fields | {name for name, value in vars(of).items() if inspect.isfunction(value)} if not name.startswith("_")}


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("## `@handler`", parameters(handler)),
        ("## `Retry`", parameters(Retry)),
        ("## `Context`", public(Context)),
        ("## Testing kit", set(testing.__all__)),
        ("### `run_handler`", {"handler", "payload", *RunOptions.__annotations__}),
        ("### `HandlerRun`", public(HandlerRun)),
        ("## Interruptions", set(get_args(errors.Interruption))),
    ],
)
def test_a_table_has_exactly_what_the_code_has(after: str, expected: set[str]) -> None:
    found = [name.partition("(")[0] for name in listed(after)]
    assert set(found) == expected
    assert len(found) == len(expected)


def test_every_default_of_the_decorator_and_of_a_policy_is_the_codes() -> None:
    for after, function in (("## `@handler`", handler), ("## `Retry`", Retry)):
        for row in rows(PAGE, after):
            default = inspect.signature(function).parameters[names(row[0])[0]].default
            if row[1].strip("`").replace(".", "").isdigit():
                assert float(row[1]) == default, row


def test_every_error_for_handlers_is_there_with_its_parameters() -> None:
    written = {name.partition("(")[0]: name for name in listed("## What a handler raises") if "(" in name}
    for error in (RetryLater, TaskFailed, TaskCancelled, InvalidInput, UnknownTaskType, Interrupted):
        arguments = ", ".join(f"**{name}" if one.kind is one.VAR_KEYWORD else name for name, one in inspect.signature(error).parameters.items())
        assert written.pop(error.__name__) == f"{error.__name__}({arguments})"
        assert error.__name__ in taskyard.__all__
    assert written == {}
    assert set(errors.Outcome.__subclasses__()) == {RetryLater, TaskFailed, TaskCancelled}, "a new one needs a line on the page"


def test_the_options_of_a_child_are_there() -> None:
    told = prose(PAGE).partition("The options of `submit`")[2].partition('means "not given"')[0]
    assert [name for name in names(told) if "." not in name and name != "None"] == list(Options.__annotations__)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [({"rows": ["a", "b"]}, ("succeeded", 2, None)), ({"rows": ["a", ""]}, ("scheduled", None, "ConnectionError"))],
)
def test_the_pages_handler_works(payload: Any, expected: tuple[str, Any, str | None]) -> None:
    scope: dict[str, Any] = {"__name__": "page"}
    exec(compile(blocks(PAGE, "python")[0].replace("from __future__", "#"), str(PAGE), "exec"), scope)
    made: Handler[Any, Any] = scope["import_rows"]
    run = run_handler(made, payload)
    assert (run.status, run.result, run.code) == expected
    assert made.soft_timeout == 540
