"""Jinja2 for templates.py, as small as a message needs it: sandboxed, no state that grows, every text, list and loop bounded.

Operators write templates, and clients may where an operator lets them choose a notifier's options. So a template must not reach
Python's insides, nor fill the memory or keep a processor busy, neither while it is compiled nor while it runs:

- template_check.py cuts the language down to what can be bounded, and bounds the template itself.
- Nothing is evaluated while a template is compiled: Jinja2 folds constants in the process that reads the template.
- template_limits.py and template_filters.py bound what it makes: texts, lists and numbers where they are made, and processor time, which each
  round of a loop, each operator and each filter looks at.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, ItemsView, Iterable, KeysView, ValuesView
from time import thread_time
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup, soft_str

from taskyard import template_filters, template_limits
from taskyard.template_check import check, is_reachable
from taskyard.template_limits import MAX_ARGUMENT, MAX_LIST, MAX_SECONDS, bounded, check_time
from taskyard.templates import MAX_MESSAGE, MAX_SOURCE, Run, shown

_TIME_FORMAT = re.compile(r"([^%]|%-?[A-Za-z%])*")


def compiled(source: str, clean: Callable[[str], str], html: bool) -> Run:
    """What runs this template. ``clean`` makes a value's text safe; ``html`` says that values are escaped for HTML after it.

    Raises:
        ValueError: says the line and what is wrong there.
    """
    if len(source) > MAX_SOURCE:
        raise ValueError(f"the template has {len(source)} characters; {MAX_SOURCE} are allowed")
    return _compiled(source, clean, html)


@functools.lru_cache(maxsize=64)
def _compiled(source: str, clean: Callable[[str], str], html: bool) -> Run:
    environment = _environment(clean, html)
    try:
        tree = environment.parse(source)
        check(tree, environment)
        _add_clock(tree, environment)
        template = environment.from_string(tree)
    except jinja2.TemplateSyntaxError as error:
        said = (error.message or "wrong syntax").rstrip(".")
        raise ValueError(f"line {error.lineno}: {said[:1].lower() + said[1:]}") from error
    except ValueError as error:
        # Python reads no whole number of more than 4,300 digits.
        raise ValueError("a number that is too large") from error
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise ValueError("the template is nested too deeply") from error
    return functools.partial(_run, template)


def _add_clock(tree: nodes.Template, environment: jinja2.Environment) -> None:
    """Each round of each loop looks at the clock first. By the environment: a name could be set to something else by the template."""
    for loop in list(tree.find_all(nodes.For)):
        look = nodes.Call(nodes.EnvironmentAttribute("clock", lineno=loop.lineno), [], [], None, None, lineno=loop.lineno)
        loop.body.insert(0, nodes.ExprStmt(look, lineno=loop.lineno))
    tree.set_environment(environment)


# --- what it can do ---


class _Code(CodeGenerator):
    """Evaluates nothing while it compiles, and bounds what expressions make."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        """Jinja2 would evaluate ``{{ 1|round(10**8) }}`` here, in whatever process reads the template, with no end to time and memory."""
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """``a ~ b``: in a loop it could double a text with every round."""
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        """``[a, a]``: repeated, it makes a structure of which a comparison takes for ever."""
        self._bounded(super().visit_List, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        """As a list; but ``for a, b in`` has a tuple of targets."""
        if node.ctx == "load":
            self._bounded(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        """As a list, and its keys are plain: the hash of a tuple takes time."""
        self.write("environment.table((")
        for item in node.items:
            self.write("(")
            self.visit(item.key, frame)
            self.write(", ")
            self.visit(item.value, frame)
            self.write("), ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        """Large lists take some milliseconds to compare."""
        self._bounded(super().visit_Compare, node, frame)

    def _bounded(self, visit: Callable[[Any, Frame], None], node: nodes.Expr, frame: Frame) -> None:
        self.write("environment.bounded(")
        visit(node, frame)
        self.write(")")


class _Sandbox(ImmutableSandboxedEnvironment):
    code_generator_class = _Code
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operators that can make something long of something short."""
        if operator == "**" or (operator == "%" and isinstance(left, str | bytes)):
            raise SecurityError(f"a message has no {operator} of this kind")
        if operator == "*":
            _check_product(left, right)
        return bounded(super().call_binop(context, operator, left, right))

    clock = staticmethod(check_time)
    bounded = staticmethod(bounded)

    def concatenated(self, parts: Iterable[Any]) -> Any:
        """``a ~ b``"""
        room = MAX_MESSAGE
        for part in parts:
            room -= len(soft_str(bounded(part)))
            if room < 0:
                raise SecurityError(f"a text of more than {MAX_MESSAGE} characters")
        return bounded((markup_join if self.autoescape else str_join)(parts))

    def table(self, pairs: Iterable[tuple[Any, Any]]) -> Any:
        """``{"a": 1}``"""
        made = {}
        for key, value in pairs:
            if not isinstance(key, str | int | float | None):
                raise SecurityError("expected texts or numbers as keys")
            made[key] = value
        return bounded(made)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """``a.b``"""
        check_time()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``a["b"]``"""
        check_time()
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """What is not on the list is out of reach."""
        return is_reachable(obj, attr)

    def wrap_str_format(self, value: Any) -> None:
        """``"{:999999999}".format(1)`` is one more way to a long text: str.format is no safe attribute here."""

    def call(self, context: Context, obj: Any, /, *arguments: Any, **named: Any) -> Any:
        """Call what a template may call: the methods that it can reach, ``range`` and the clock."""
        if getattr(obj, "__name__", "") == "strftime" and not (len(arguments) == 1 and _TIME_FORMAT.fullmatch(str(arguments[0])[: MAX_ARGUMENT + 1])):
            raise SecurityError("strftime takes one format, of plain codes such as %Y-%m-%d")
        for argument in (*arguments, *named.values()):
            if isinstance(argument, str) and len(argument) > MAX_ARGUMENT:
                raise SecurityError(f"{getattr(obj, '__name__', 'it')} takes a text of {MAX_ARGUMENT} characters at most")
            bounded(argument)
        made = super().call(context, obj, *arguments, **named)
        # A view of a table hides how much it holds, and how much the views in it hold.
        return bounded(list(made) if isinstance(made, KeysView | ValuesView | ItemsView) else made)


def _check_product(left: Any, right: Any) -> None:
    for held, times in ((left, right), (right, left)):
        if isinstance(held, str | bytes | list | tuple) and isinstance(times, int) and len(held) * times > MAX_LIST:
            raise SecurityError("a product that is too long")


def _range(*numbers: int) -> range:
    made = range(*numbers)
    if len(made) > MAX_LIST:
        raise SecurityError(f"a range of more than {MAX_LIST} numbers")
    return made


class _Silent(jinja2.ChainableUndefined):
    """What an event does not have is empty, however deep: templates serve many kinds of events."""

    __slots__ = ()


@functools.cache
def _environment(clean: Callable[[str], str], html: bool) -> _Sandbox:
    def finalize(value: Any) -> Any:
        bounded(value)
        if isinstance(value, Markup):
            return value
        return clean("" if isinstance(value, jinja2.Undefined) else shown(value))

    made = _Sandbox(
        autoescape=html, finalize=finalize, undefined=_Silent, optimized=False, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False, cache_size=0
    )
    made.filters, made.tests = dict(template_filters.filters()), dict(template_filters.tests())
    made.globals = {"range": _range}
    return made


def _run(template: jinja2.Template, variables: dict[str, Any]) -> str:
    before = template_limits.deadline.set(thread_time() + MAX_SECONDS)
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
        template_limits.deadline.reset(before)
    return "".join(parts)


def _line_of(error: BaseException) -> str:
    """Jinja2 gives the template's lines to the frames of a traceback; the last of them is where it happened."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}: " if line else ""
