"""Jinja2 for templates.py, as small as a message needs it: sandboxed, no state that grows, every text, list and loop bounded.

Operators write templates, and clients may where an operator lets them choose a notifier's options. So a template must not reach
Python's insides, nor fill the memory or keep a processor busy. Its language is cut down to what can be bounded, and what is left is:
texts and lists by length where they are made, loops by a clock that each round looks at, and each filter and operator too.
"""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateAssertionError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from taskyard.notifiers import Event, TaskInfo
from taskyard.spelling import near_names
from taskyard.templates import MAX_MESSAGE, MAX_SOURCE, Run, shown

#: Seconds that making one message may take.
MAX_SECONDS = 1.0
#: Members of a list that a template makes.
MAX_LIST = 1_000
#: Levels of brackets, ifs and loops: Jinja2's parser and Python's compiler both recurse.
MAX_DEPTH = 50

VARIABLES = ("event", "task", "data", "route", "delivery_id")
_FIELDS = {"event": [name for name in dir(Event) if not name.startswith("_")], "task": [name for name in dir(TaskInfo) if not name.startswith("_")]}

_STATEMENTS = (nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign)
_FILTERS = (
    "abs capitalize count d default dictsort e escape filesizeformat first float int items last length list lower map max min reject "
    "rejectattr round safe select selectattr sort string striptags sum title tojson trim truncate unique upper urlencode wordcount"
)
#: Methods of texts that make nothing longer than what they are given.
_TEXT_METHODS = (
    *("capitalize", "casefold", "count", "endswith", "find", "isalnum", "isalpha", "isdigit", "islower", "isspace", "isupper", "lower", "lstrip"),
    *("partition", "removeprefix", "removesuffix", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper"),
)
_TIME_FORMAT = re.compile(r"([^%]|%-?[A-Za-z%])*")


def compiled(source: str, clean: Callable[[str], str], html: bool) -> Run:
    """What runs this template. ``clean`` makes a value's text safe; ``html`` says that values are escaped for HTML after it.

    Raises:
        ValueError: says the line and what is wrong there.
    """
    if len(source) > MAX_SOURCE:
        raise ValueError(f"the template has {len(source)} characters; {MAX_SOURCE} are allowed")
    return _compiled(source, clean, html)


@functools.lru_cache(maxsize=256)
def _compiled(source: str, clean: Callable[[str], str], html: bool) -> Run:
    environment = _environment(clean, html)
    try:
        tree = environment.parse(source)
        _check(tree)
        _add_clock(tree, environment)
        template = environment.from_string(tree)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno}: {_plain(error, environment)}") from error
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise ValueError("the template is nested too deeply") from error
    return functools.partial(_run, template)


def _plain(error: jinja2.TemplateSyntaxError, environment: jinja2.Environment) -> str:
    said = (error.message or "wrong syntax").rstrip(".")
    unknown = re.fullmatch(r"No (filter|test) named '(.*)'", said)
    if not isinstance(error, TemplateAssertionError) or unknown is None:
        return said[:1].lower() + said[1:]
    known = environment.filters if unknown[1] == "filter" else environment.tests
    return f"there is no {unknown[1]} {unknown[2]!r}.{_near(unknown[2], known)}"


def _near(name: str, known: Iterable[str]) -> str:
    found = near_names(name, known)
    return f" Did you mean {found[0]!r}?" if found else f" There are: {', '.join(sorted(known))}."


# --- what a template may say ---


def _check(tree: nodes.Template) -> None:
    """Refuse what can't be bounded, and names that are not there.

    Raises:
        jinja2.TemplateSyntaxError: with the line.
    """
    own = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"} | {"loop", "range"}
    for node in _walk(tree, MAX_DEPTH):
        if isinstance(node, nodes.Stmt) and not isinstance(node, _STATEMENTS):
            raise jinja2.TemplateSyntaxError(f"a message has no {type(node).__name__.lower()}: only if, for and set", node.lineno)
        if isinstance(node, nodes.For) and node.recursive:
            raise jinja2.TemplateSyntaxError("a message has no recursive loops", node.lineno)
        if isinstance(node, nodes.Name) and node.ctx == "load" and node.name not in own and node.name not in VARIABLES:
            raise jinja2.TemplateSyntaxError(f"there is no {node.name!r} here.{_near(node.name, VARIABLES)}", node.lineno)
        if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name) and node.node.name not in own:
            known = _FIELDS.get(node.node.name)
            if known and node.attr not in known:
                raise jinja2.TemplateSyntaxError(f"{node.node.name} has no {node.attr!r}.{_near(node.attr, known)}", node.lineno)


def _walk(node: nodes.Node, depth: int) -> Iterator[nodes.Node]:
    if depth == 0:
        raise jinja2.TemplateSyntaxError("nested too deeply", node.lineno)
    yield node
    for child in node.iter_child_nodes():
        yield from _walk(child, depth - 1)


def _add_clock(tree: nodes.Template, environment: jinja2.Environment) -> None:
    """Each round of each loop looks at the clock first."""
    for loop in tree.find_all(nodes.For):
        look = nodes.Call(nodes.Name("_clock", "load", lineno=loop.lineno), [], [], None, None, lineno=loop.lineno)
        loop.body.insert(0, nodes.ExprStmt(look, lineno=loop.lineno))
        loop.set_environment(environment)


# --- what it can do ---


class _Code(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """``a ~ b``, bounded: in a loop it could double a text with every round."""
        self.write("environment.bounded(")
        super().visit_Concat(node, frame)
        self.write(")")


class _Sandbox(ImmutableSandboxedEnvironment):
    code_generator_class = _Code
    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operators that can make something long of something short."""
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"a message has no {operator} of this kind")
        if operator == "*":
            _check_product(left, right)
        return self.bounded(super().call_binop(context, operator, left, right))

    def bounded(self, value: Any) -> Any:
        """The value, if it is not too long, and if there is time left."""
        _clock()
        if isinstance(value, list | tuple) and len(value) > MAX_LIST:
            raise SecurityError(f"a list of more than {MAX_LIST} members")
        if not _is_light(value):
            raise SecurityError(f"a text of more than {MAX_MESSAGE} characters, or a list with as many")
        return value

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Methods of texts could make long ones; ``strftime`` is looked at when it is called."""
        if isinstance(obj, str):
            return attr in _TEXT_METHODS
        if isinstance(obj, int | float | bytes | type):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """``"{:999999999}".format(1)`` is one more way to a long text: str.format is no safe attribute here."""

    def call(self, context: Context, obj: Any, /, *arguments: Any, **named: Any) -> Any:
        """Call what a template may call."""
        if getattr(obj, "__name__", "") == "strftime" and not (len(arguments) == 1 and _TIME_FORMAT.fullmatch(str(arguments[0]))):
            raise SecurityError("strftime takes one format, of plain codes such as %Y-%m-%d")
        return self.bounded(super().call(context, obj, *arguments, **named))


#: When the message that is being made has to be done.
_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


def _clock() -> None:
    if time.monotonic() > _deadline.get():
        raise SecurityError(f"it takes longer than {MAX_SECONDS:g} s")


def _is_light(value: Any) -> bool:
    """Has it no more than MAX_MESSAGE characters and members, all the way down? A list that holds one long text a hundred times has not."""
    room, left = MAX_MESSAGE, [value]
    while left and room >= 0:
        part = left.pop()
        if isinstance(part, str):
            room -= len(part)
        elif isinstance(part, dict | list | tuple):
            room -= len(part) + 1
            left += [*part, *part.values()] if isinstance(part, dict) else part
        else:
            room -= 1
    return room >= 0


def _check_product(left: Any, right: Any) -> None:
    for held, times in ((left, right), (right, left)):
        if isinstance(held, str | list | tuple) and isinstance(times, int) and len(held) * times > MAX_LIST:
            raise SecurityError("a product that is too long")


def _range(*numbers: int) -> range:
    made = range(*numbers)
    if len(made) > MAX_LIST:
        raise SecurityError(f"a range of more than {MAX_LIST} numbers")
    return made


def _join(values: Iterable[Any], d: str = "") -> str:
    """Put texts together."""
    length, parts = 0, []
    for value in values:
        parts.append(shown(value))
        length += len(parts[-1]) + len(d)
        if length > MAX_MESSAGE:
            raise SecurityError(f"a text of more than {MAX_MESSAGE} characters")
    return d.join(parts)


def _replace(text: Any, old: str, new: str) -> str:
    """Replace a part of a text wherever it stands."""
    text = shown(text)
    if len(text) + text.count(old) * len(new) > MAX_MESSAGE:
        raise SecurityError(f"a text of more than {MAX_MESSAGE} characters")
    return str(text).replace(old, new)


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Nested data as (name, value) pairs, names with dots; what is empty is left out. ``{"a": {"b": 1}}`` is ``[("a.b", 1)]``."""
    found: list[tuple[str, Any]] = []
    for key, inner in value.items() if isinstance(value, dict) else ():
        full = f"{name}.{key}" if name else str(key)
        if isinstance(inner, list) and any(isinstance(member, dict) for member in inner):
            found += _flat({str(number): member for number, member in enumerate(inner, 1)}, full)
        elif isinstance(inner, dict):
            found += _flat(inner, full)
        elif inner not in (None, "", [], ()):
            found.append((full, inner))
    return found[:MAX_LIST]


class _Silent(jinja2.ChainableUndefined):
    """What an event does not have is empty, however deep: templates serve many kinds of events."""

    __slots__ = ()


def _limited(environment: _Sandbox, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes and answers what is bounded: ``tojson`` twice doubles each backslash."""

    @functools.wraps(function)
    def limited(*arguments: Any, **named: Any) -> Any:
        for argument in arguments:
            environment.bounded(argument)
        return environment.bounded(function(*arguments, **named))

    return limited


def _environment(clean: Callable[[str], str], html: bool) -> _Sandbox:
    def finalize(value: Any) -> Any:
        made.bounded(value)
        if isinstance(value, Markup):
            return value
        return clean("" if isinstance(value, jinja2.Undefined) else shown(value))

    made = _Sandbox(autoescape=html, finalize=finalize, undefined=_Silent, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False, cache_size=0)
    chosen = {name: made.filters[name] for name in _FILTERS.split()} | {"flat": _flat, "join": _join, "replace": _replace}
    made.filters = {name: _limited(made, function) for name, function in chosen.items()}
    made.globals = {"range": _range, "_clock": _clock}
    return made


def _run(template: jinja2.Template, variables: dict[str, Any]) -> str:
    deadline = _deadline.set(time.monotonic() + MAX_SECONDS)
    parts: list[str] = []
    length = 0
    try:
        for part in template.generate(**variables):
            parts.append(part)
            length += len(part)
            if length > MAX_MESSAGE:
                raise SecurityError(f"it has more than {MAX_MESSAGE} characters")
    except Exception as error:  # A template can raise whatever the methods that it calls do.
        raise ValueError(f"{_line_of(error)}{error or type(error).__name__}") from error
    finally:
        _deadline.reset(deadline)
    return "".join(parts)


def _line_of(error: BaseException) -> str:
    """Jinja2 gives the template's lines to the frames of a traceback; the last of them is where it happened."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}: " if line else ""
