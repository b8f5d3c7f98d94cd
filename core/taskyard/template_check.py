"""What a message template may say: a language that is cut down to what can be bounded, and names that are there."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from datetime import date, datetime, time, timedelta
from uuid import UUID

import jinja2
from jinja2 import nodes
from jinja2.runtime import LoopContext

from taskyard.notifiers import Event, TaskInfo
from taskyard.spelling import near_names
from taskyard.template_limits import MAX_INTEGER

#: Levels of brackets, ifs and loops: Jinja2's parser and Python's compiler both recurse.
MAX_DEPTH = 50
#: Parts of a template: names, values, operators, filters, statements.
MAX_NODES = 2_000
#: Loops inside each other: Python has a limit of its own, and says so in words that suit no template.
MAX_LOOPS = 10

VARIABLES = ("event", "task", "data", "route", "delivery_id")
_FIELDS = {"event": [name for name in dir(Event) if not name.startswith("_")], "task": [name for name in dir(TaskInfo) if not name.startswith("_")]}

_STATEMENTS = (nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign)
_TIME_FIELDS = ("year", "month", "day", "hour", "minute", "second", "microsecond")
_LOOP = ("changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length", "nextitem", "previtem", "revindex", "revindex0")
#: What a template may take from a value, by the value's type: nothing that makes something longer than it is given, or that runs for long.
_ATTRIBUTES: tuple[tuple[type, frozenset[str]], ...] = (
    (
        str,
        frozenset(
            (
                *("capitalize", "casefold", "count", "endswith", "find", "isalnum", "isalpha", "isdigit", "islower", "isspace", "isupper", "lower"),
                *("lstrip", "partition", "removeprefix", "removesuffix", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith"),
                *("strip", "title", "upper"),
            )
        ),
    ),
    (dict, frozenset({"get", "items", "keys", "values"})),
    (list, frozenset({"count", "index"})),
    (tuple, frozenset({"count", "index"})),
    (datetime, frozenset({*_TIME_FIELDS, "date", "isoformat", "isoweekday", "strftime", "time", "timestamp", "tzname", "utcoffset", "weekday"})),
    (date, frozenset({*_TIME_FIELDS, "isoformat", "isoweekday", "strftime", "weekday"})),
    (time, frozenset({*_TIME_FIELDS, "isoformat", "strftime"})),
    (timedelta, frozenset({"days", "microseconds", "seconds", "total_seconds"})),
    (UUID, frozenset({"hex", "urn", "version"})),
    (Event, frozenset(_FIELDS["event"])),
    (TaskInfo, frozenset(_FIELDS["task"])),
    (LoopContext, frozenset(_LOOP)),
)
#: What of these can be called: a call of anything else is a mistake in every message.
_METHODS = frozenset(
    name for kind, names in _ATTRIBUTES for name in names if callable(getattr(kind, name, None)) and not isinstance(getattr(kind, name), property)
)


def is_reachable(value: object, attribute: str) -> bool:
    """May a template take this attribute? A list of what is allowed: types have more attributes than anybody remembers."""
    return any(isinstance(value, kind) and attribute in names for kind, names in _ATTRIBUTES)


def check(tree: nodes.Template, environment: jinja2.Environment) -> None:
    """Refuse what can't be bounded, and names that are not there: also where the template may never come to them.

    Raises:
        jinja2.TemplateSyntaxError: with the line.
    """
    own = {"loop", "range"}
    for number, (node, loops) in enumerate(_walk(tree, MAX_DEPTH)):
        if number > MAX_NODES:
            raise jinja2.TemplateSyntaxError(f"more than {MAX_NODES} names, values, operators and statements", node.lineno)
        if loops > MAX_LOOPS:
            raise jinja2.TemplateSyntaxError(f"more than {MAX_LOOPS} loops inside each other", node.lineno)
        if isinstance(node, nodes.Name) and node.ctx != "load":
            own.add(node.name)
    for node, _ in _walk(tree, MAX_DEPTH):
        if mistake := _mistake(node, own, environment):
            raise jinja2.TemplateSyntaxError(mistake, node.lineno)


def _walk(node: nodes.Node, depth: int, loops: int = 0) -> Iterator[tuple[nodes.Node, int]]:
    """All nodes, each with the number of loops that it is in."""
    if depth == 0:
        raise jinja2.TemplateSyntaxError("nested too deeply", node.lineno)
    loops += isinstance(node, nodes.For)
    yield node, loops
    for child in node.iter_child_nodes():
        yield from _walk(child, depth - 1, loops)


def _mistake(node: nodes.Node, own: Collection[str], environment: jinja2.Environment) -> str | None:
    """What is wrong with one node, if anything is."""
    match node:
        case nodes.For(recursive=True):
            return "a message has no recursive loops"
        case nodes.Stmt() if not isinstance(node, _STATEMENTS):
            return f"a message has no {type(node).__name__.lower()}: only if, for and set"
        case nodes.Const(value=int() as number) if abs(number) > MAX_INTEGER:
            return "a number that is too large"
        case nodes.Const(value=float() as number) if not math.isfinite(number):
            return "a number that is too large"
        case nodes.Name(ctx="load", name=name) if name not in own and name not in VARIABLES:
            return f"there is no {name!r} here.{_near(name, VARIABLES)}"
        case (
            nodes.Getattr(node=nodes.Name(name=holder), attr=str() as name) | nodes.Getitem(node=nodes.Name(name=holder), arg=nodes.Const(value=str() as name))
        ):
            known = () if holder in own else _FIELDS.get(holder, ())
            return f"{holder} has no {name!r}.{_near(name, known)}" if known and name not in known else None
        case nodes.Pow():
            return "a message has no **"
        case nodes.NSRef(name=name):
            return f"a message can't set a part of {name!r}: set a name without a dot"
        case nodes.Call(node=nodes.Name(name=name)) if name in VARIABLES and name not in own:
            return f"{name!r} can't be called"
        case nodes.Call(node=nodes.Getattr(attr=name)) if name not in _METHODS:
            return f"a message can't call {name!r}.{_near(name, _METHODS)}"
        case nodes.Filter() | nodes.Test() | nodes.Call() if len({pair.key for pair in node.kwargs}) < len(node.kwargs):
            return "an argument is given twice"
        case nodes.Filter() | nodes.Test():
            return _unknown(node, environment)
    return None


#: Filters that are given the name of another filter or of a test: which, and at which place.
_NAMING = {"map": ("filter", 0), "select": ("test", 0), "reject": ("test", 0), "selectattr": ("test", 1), "rejectattr": ("test", 1)}


def _unknown(node: nodes.Filter | nodes.Test, environment: jinja2.Environment) -> str | None:
    """The filter or test that is not there. Jinja2 itself finds it at run time only, where it is in an if."""
    named = [("filter" if isinstance(node, nodes.Filter) else "test", node.name)]
    if isinstance(node, nodes.Filter) and node.name in _NAMING:
        kind, place = _NAMING[node.name]
        given = node.args[place : place + 1]
        named += [(kind, argument.value) for argument in given if isinstance(argument, nodes.Const) and isinstance(argument.value, str)]
    for kind, name in named:
        known: Collection[str] = environment.filters if kind == "filter" else environment.tests
        if name not in known:
            return f"there is no {kind} {name!r}.{_near(name, known)}"
    return None


def _near(name: str, known: Iterable[str]) -> str:
    found = near_names(name, known)
    return f" Did you mean {found[0]!r}?" if found else f" There are: {', '.join(sorted(known))}."
