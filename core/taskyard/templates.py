"""Message templates for notifiers: Jinja2, sandboxed and bounded; what a user typed is escaped for the channel.

A notifier's Options model takes a template as a field; a mistake in it is told when the route is read::

    class Options(BaseModel):
        text: TextTemplate = Field(TextTemplate("{{ event.type }} of {{ task.type }}"), description="Template of the message.")

    message = options.text.render(event, ctx)

Only whoever makes a template needs Jinja2: a plugin that has one names ``jinja2`` among its dependencies.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from taskyard.errors import TaskFailed

if TYPE_CHECKING:
    from taskyard.notifiers import DeliveryContext, Event

#: Characters of a template's source, and of what it makes.
MAX_SOURCE = 20_000
MAX_MESSAGE = 200_000
#: Characters of one line, such as a subject.
MAX_LINE = 300
#: What of an event's data reaches a template: characters of one text, and of all; members of a list or a table; levels.
MAX_TEXT = 4_000
MAX_TEXTS = 40_000
MAX_MEMBERS = 100
MAX_LEVELS = 8
CUT = "…"

_EVENT_TITLE = "{{ event.type }}{% if task.type %}: {{ task.type }}{% elif data.count %}: {{ data.count }} events{% endif %}"
_EVENT_TEXT = """\
{% if data.counts %}
{% for item in data.counts %}
{{ item.count }} x {{ item.event }} {{ item.type }}
{% endfor %}
{% for told in data.events %}
{{ told.time }} {{ told.type }} {{ told.data.task.type }} {{ told.subject }} {{ told.data.error.code }} {{ told.data.error.message }}
{% endfor %}
{% else %}
{% for name, value in data|flat %}
{{ name }}: {{ value }}
{% endfor %}
{% endif %}

{% if task.type %}
task {{ event.task_id }}, attempt {{ event.attempt }}, queue {{ task.queue }}{% if task.tags %}, tags {{ task.tags|join(", ") }}{% endif %}

{% endif %}
namespace {{ task.namespace }}, {{ event.time }}, route {{ route }}
"""

#: Controls but tab and line feed, separators that some readers take for line breaks, and what reorders text (Unicode's bidi controls).
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
#: What Markdown reads as marks, anywhere or at the beginning of a line.
_MARKS = re.compile(r"[\\`*_\[\]]|^[ \t]*(?:[-+#]|\d+(?=[.)]))", re.MULTILINE)
#: ``@everyone`` in a chat wakes everyone. A blank of no width after the sign keeps it readable and calls nobody.
_MENTION = re.compile(r"@(?=\w)")


def clean_text(text: str) -> str:
    """Plain text: one kind of line break, no other control characters, nothing that reorders what people read."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def clean_line(text: str) -> str:
    """One line of plain text: every run of blanks and line breaks is one blank."""
    return " ".join(clean_text(text.replace("\u2028", " ").replace("\u2029", " ")).split())


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, and that mentions nobody. What could be HTML is written as entities: not every reader of Markdown
    knows a backslash before it.
    """
    plain = clean_text(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MENTION.sub("@\u200b", _MARKS.sub(_escape_mark, plain))


def _escape_mark(match: re.Match[str]) -> str:
    """Of ``1.`` it is the point that must not count."""
    return match[0] + "\\" if match[0][-1].isdigit() else f"{match[0][:-1]}\\{match[0][-1]}"


def shown(value: Any) -> str:
    """A value as people read it: texts as they are, times to the second, tables and lists as JSON, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list | tuple) else str(value)


class Template:
    """A message template, as a field of a notifier's Options. Use one of its kinds; each escapes values for its channel.

    Templates see ``event``, ``task``, ``data`` (the event's), ``route`` and ``delivery_id``. They have expressions, ``if``, ``for`` and
    ``set``; macros, blocks and other files are refused.

    Raises:
        ValueError: it is too long, its syntax is wrong, or it names what is not there; says the line.
    """

    __slots__ = ("_run", "source")
    html: ClassVar[bool] = False

    def __init__(self, source: str) -> None:
        from taskyard import sandbox  # Jinja2 is loaded by those who have a template, and by nobody else.

        self.source = source
        self._run = sandbox.compiled(source, self.clean, self.html)

    @staticmethod
    def clean(text: str) -> str:
        """A value's text, made safe for the channel."""
        raise NotImplementedError

    def render(self, event: Event, ctx: DeliveryContext) -> str:
        """The message.

        Raises:
            TaskFailed: it can't be made (``code="template"``): more tries would not help.
        """
        seen = dataclasses.replace(event, data=bounded(event.data))
        try:
            return self._finished(self._run({"event": seen, "task": seen.task, "data": seen.data, "route": ctx.route, "delivery_id": ctx.delivery_id}))
        except ValueError as error:
            raise TaskFailed(f"the message can't be made: {error}", code="template") from error

    def _finished(self, message: str) -> str:
        return message

    def __str__(self) -> str:
        return self.source

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and (type(self), self.source) == (type(other), other.source)

    def __hash__(self) -> int:
        return hash((type(self), self.source))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A string in configurations and JSON."""
        text, written = core_schema.str_schema(), core_schema.to_string_ser_schema()
        return core_schema.no_info_plain_validator_function(cls._read, json_schema_input_schema=text, serialization=written)

    @classmethod
    def _read(cls, value: Any) -> Self:
        if isinstance(value, cls):
            return value
        if not isinstance(value, str):
            raise ValueError("expected a text, the template")
        return cls(value)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class TextTemplate(Template):
    """Plain text: values lose their control characters.

    ``EVENT`` is the source of one that suits every event: of a task, of the installation, or a digest of many.
    """

    EVENT: ClassVar[str] = _EVENT_TEXT
    clean = staticmethod(clean_text)


class LineTemplate(Template):
    """One line of plain text, such as a subject: values can't begin a second one. What is too long is cut.

    ``EVENT`` is the source of a title that suits every event.
    """

    EVENT: ClassVar[str] = _EVENT_TITLE
    clean = staticmethod(clean_line)

    def _finished(self, message: str) -> str:
        line = clean_line(message)
        return line if len(line) <= MAX_LINE else line[: MAX_LINE - 1] + CUT


class MarkdownTemplate(Template):
    """Markdown: values are shown as they are, whatever marks they have, and mention nobody."""

    clean = staticmethod(escape_markdown)


class HtmlTemplate(Template):
    """HTML: values are escaped. ``| safe`` takes one as HTML."""

    clean = staticmethod(clean_text)
    html = True


def bounded(value: dict[str, Any]) -> dict[str, Any]:
    """An event's data as templates see it: what is too long, too many or too deep is cut, so that any event makes a message of bounded size."""
    budget = [MAX_TEXTS]
    cut: dict[str, Any] = _bounded(value, budget, MAX_LEVELS)
    return cut


def _bounded(value: Any, budget: list[int], levels: int) -> Any:
    if isinstance(value, str):
        return _cut(value, budget)
    if isinstance(value, dict | list | tuple) and levels == 0:
        return CUT
    if isinstance(value, dict):
        kept = {_cut(str(key), budget): _bounded(inner, budget, levels - 1) for key, inner in list(value.items())[:MAX_MEMBERS]}
        return kept if len(value) <= MAX_MEMBERS else {**kept, CUT: f"{len(value) - MAX_MEMBERS} more"}
    if isinstance(value, list | tuple):
        items = [_bounded(inner, budget, levels - 1) for inner in value[:MAX_MEMBERS]]
        return items if len(value) <= MAX_MEMBERS else [*items, f"{CUT} {len(value) - MAX_MEMBERS} more"]
    if value is None or isinstance(value, bool | float | datetime) or (isinstance(value, int) and abs(value) < 10**15):
        return value
    # A whole number may have thousands of digits: as any text, it counts.
    return _cut(str(value), budget)


def _cut(text: str, budget: list[int]) -> str:
    room = min(MAX_TEXT, budget[0])
    budget[0] -= min(len(text), room)
    return text if len(text) <= room else text[:room] + CUT


#: What runs a compiled template over its variables. Raises ValueError.
Run = Callable[[dict[str, Any]], str]
