"""Message templates: what they show, what a user typed can't do, what a mistake is told, and that no template takes the machine with it."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from markdown_it import MarkdownIt
from pydantic import BaseModel, Field, ValidationError

from taskyard import DeliveryContext, HtmlTemplate, LineTemplate, MarkdownTemplate, TaskFailed, TaskInfo, TextTemplate
from taskyard.templates import MAX_LINE, MAX_MEMBERS, MAX_MESSAGE, MAX_TEXT, Template, bounded
from taskyard.testing import make_event

KINDS: list[type[Template]] = [TextTemplate, LineTemplate, MarkdownTemplate, HtmlTemplate]


def rendered(kind: type[Template], source: str, **data: Any) -> str:
    task = TaskInfo("acme", "report.make", "slow", 7, ("vip", "nightly"), "failed")
    return kind(source).render(make_event("task.failed", data=data, task=task), DeliveryContext("dlv_7", "failures"))


def mistake(source: str) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        TextTemplate(source)
    return str(caught.value)


def test_a_template_sees_the_event_its_task_and_its_way() -> None:
    source = "{{ event.type }} {{ task.type }} {{ task.tags|join('+') }} {{ data.error.code }} {{ route }} {{ delivery_id }} {{ event.time.strftime('%Y') }}"
    year = make_event().time.year
    assert rendered(TextTemplate, source, error={"code": "timeout"}) == f"task.failed report.make vip+nightly timeout failures dlv_7 {year}"


def test_what_an_event_does_not_have_is_empty() -> None:
    assert rendered(TextTemplate, "<{{ data.error.code.deep }}{{ data['x'].y }}>") == "<>"


def test_nested_data_is_shown_as_names_with_dots() -> None:
    source = "{% for name, value in data|flat %}\n{{ name }}={{ value }}\n{% endfor %}"
    told = rendered(TextTemplate, source, error={"code": "timeout", "extra": {"n": 1}}, none=None, ok=True, tasks=[{"id": "a"}, {"id": "b"}], ids=[1, 2])
    assert told.splitlines() == ["error.code=timeout", "error.extra.n=1", "ok=yes", "tasks.1.id=a", "tasks.2.id=b", "ids=[1, 2]"]


# --- what a user typed ---


@pytest.mark.parametrize("typed", ["a\x00\x07\x1b[31mb", "a\u202eb", "a\x9bb", "a\ud800b"])
def test_control_characters_are_dropped(typed: str) -> None:
    for kind in KINDS:
        assert rendered(kind, "{{ data.x }}", x=typed).replace("\\[31m", "").replace("[31m", "") == "ab"


def test_a_line_stays_one_line_and_is_cut_where_it_is_long() -> None:
    assert rendered(LineTemplate, "a {{ data.x }}\nb", x="1\r\nBcc: c\u2028d\x0be") == "a 1 Bcc: c de b"
    cut = rendered(LineTemplate, "{{ data.x }}", x="x" * 1000)
    assert (len(cut), cut[-1]) == (MAX_LINE, "…")


def test_html_is_escaped() -> None:
    assert rendered(HtmlTemplate, "<b>{{ data.x }}</b>", x="<script>\"'&") == "<b>&lt;script&gt;&#34;&#39;&amp;</b>"
    assert rendered(HtmlTemplate, "{{ '<i>' ~ data.x }}", x="<b>") == "&lt;i&gt;&lt;b&gt;"
    assert rendered(HtmlTemplate, "<a title='{{ data.x|upper }}'>", x="'><b>") == "<a title='&#39;&gt;&lt;B&gt;'>"


@pytest.mark.parametrize("typed", ["*x* _y_", "[a](http://b)", "<http://a>", "`code`", "# head\n- item\n1. one", "<b>&amp;", "![i](j)", "\\*"])
def test_markdown_shows_what_was_typed_as_it_is(typed: str) -> None:
    made = MarkdownIt().render(rendered(MarkdownTemplate, "**{{ data.x }}**", x=typed))
    shown = made.strip().removeprefix("<p><strong>").removesuffix("</strong></p>")
    assert shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == typed


def test_nobody_is_mentioned_in_markdown() -> None:
    assert "@everyone" not in rendered(MarkdownTemplate, "{{ data.x }}", x="@everyone <!channel>")
    assert "<!" not in rendered(MarkdownTemplate, "{{ data.x }}", x="@everyone <!channel>")


def test_data_is_cut_to_a_size_that_any_message_can_have() -> None:
    cut = bounded(
        {"text": "x" * 10_000, "list": list(range(1000)), "number": 10**4000, "more": {str(n): "y" * 100 for n in range(1000)}, "texts": ["z" * 4000] * 50}
    )
    assert len(cut["text"]) == MAX_TEXT + 1
    assert cut["list"][-1] == "… 900 more"
    assert len(cut["more"]) == MAX_MEMBERS + 1
    assert len(str(cut)) < 60_000
    deep: dict[str, Any] = {}
    for _ in range(500):
        deep = {"a": deep}
    assert "…" in str(bounded(deep))


# --- mistakes are told when they are made ---


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("ok\n{{ event.type", "line 2: unexpected end of template"),
        ("{% if x %}", "line 1: "),
        ("a\nb\n{{ tsk.type }}", "line 3: there is no 'tsk' here. Did you mean 'task'?"),
        ("{{ event.typ }}", "line 1: event has no 'typ'. Did you mean 'type'?"),
        ("{{ task.tag }}", "line 1: task has no 'tag'. Did you mean 'tags'?"),
        ("{{ data.x|uper }}", "line 1: there is no filter 'uper'. Did you mean 'upper'?"),
        ("{{ 1 is evn }}", "line 1: there is no test 'evn'. Did you mean 'even'?"),
        ("{% if data.error %}{{ task.type|nofilter }}{% endif %}", "line 1: there is no filter 'nofilter'"),
        ("{% if data.error is notest %}x{% endif %}", "line 1: there is no test 'notest'"),
        ("{% if 1 %}\n{% elif 2 %}\n{% for a in data if a|uper %}{% endfor %}\n{% endif %}", "line 3: there is no filter 'uper'. Did you mean 'upper'?"),
        ("{{ 1 if data.error else task.type|nofilter }}", "there is no filter 'nofilter'"),
        ("{% if 1 %}{{ data.x|map('nofilter')|list }}{% endif %}", "there is no filter 'nofilter'"),
        ("{% if 1 %}{{ data.x|select('notest')|list }}{% endif %}", "there is no test 'notest'"),
        ("{% if 1 %}{{ data.x|rejectattr('a', 'notest')|list }}{% endif %}", "there is no test 'notest'"),
        ("{% if 1 %}{{ event['typ'] }}{% endif %}", "event has no 'typ'. Did you mean 'type'?"),
        ("{% if 1 %}{{ 'a'.uper() }}{% endif %}", "a message can't call 'uper'. Did you mean 'upper'?"),
        ("{{ data.x|replace('a', new='b', new='c') }}", "an argument is given twice"),
        ("{% set a = " + "9" * 5000 + " %}", "a number that is too large"),
        ("{% set a = 0x" + "f" * 5000 + " %}", "a number that is too large"),
        ("{{ 1e999 }}", "a number that is too large"),
        ("{{ [" + "1, " * 2100 + "] }}", "more than 2000 names"),
        ("{% for a in data %}" * 11 + "{% endfor %}" * 11, "more than 10 loops inside each other"),
        ("{% include 'x' %}", "line 1: a message has no include: only if, for and set"),
        ("{% macro m() %}{% endmacro %}", "line 1: a message has no macro"),
        ("{% for a in data recursive %}{{ loop(a) }}{% endfor %}", "line 1: a message has no recursive loops"),
        ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", "nested too deeply"),
        ("{{ " + "-" * 500 + "1" + " }}", "nested too deeply"),
        ("{% if data.error %}\n{{ 2 ** data.n }}{% endif %}", "line 2: a message has no **"),
        ("{% set data.x = 1 %}", "line 1: a message can't set a part of 'data'"),
        ("{% if data.error %}{{ data() }}{% endif %}", "line 1: 'data' can't be called"),
        ("x" * 20_001, "20000 are allowed"),
    ],
    ids=lambda text: text[:40],
)
def test_a_mistake_is_told_with_its_line(source: str, sentence: str) -> None:
    assert sentence in mistake(source)


def test_a_template_is_a_field_of_options_and_text_in_their_schema() -> None:
    class Options(BaseModel):
        text: TextTemplate = Field(TextTemplate("{{ event.type }}"), description="Text.")

    assert Options.model_json_schema()["properties"]["text"].items() >= {"default": "{{ event.type }}", "type": "string"}.items()
    assert Options.model_validate({"text": "a"}).model_dump() == {"text": TextTemplate("a")}
    assert Options.model_validate_json('{"text": "a"}').model_dump_json() == '{"text":"a"}'
    with pytest.raises(ValidationError, match="line 1: unexpected"):
        Options.model_validate({"text": "{{ }"})


# --- no template takes the machine with it ---


@pytest.mark.parametrize(
    "source",
    [
        "{{ ().__class__.__mro__ }}",
        "{{ event.__init__.__globals__ }}",
        "{{ ''['__class__'] }}",
        "{{ event.to_cloudevent.__func__ }}",
        "{{ data.items.__self__ }}",
        "{{ '{0.__class__}'.format(event) }}",
        "{{ data|map(attribute='__class__')|list }}",
        "{{ data|attr('__class__') }}",
    ],
)
def test_pythons_insides_are_out_of_reach(source: str) -> None:
    try:
        shown = rendered(TextTemplate, source, x="secret")
    except (TaskFailed, ValueError):
        return
    assert "class" not in shown
    assert "__" not in shown


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 1000000000 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ range(1000000000)|list }}",
        "{{ 'a'.replace('a', 'b' * 900) }}",
        "{{ event.time.strftime('%999999999Y') }}",
        "{% set a = 'x' * 1000 %}" + "{% set a = a ~ a %}" * 40 + "{{ a }}",
        "{% set a = 'x' * 1000 %}" + "{% set a = a + a %}" * 40 + "{{ a }}",
        "{% set a = 'x' * 1000 %}" + "{% set a = a|replace('x', 'xx') %}" * 40 + "{{ a }}",
        "{% set a = '\"' * 1000 %}" + "{% set a = a|tojson|string %}" * 40 + "{{ a }}",
        "{% set r = range(1000) %}{% set s = r|list %}" + "{% set s = s + s %}" * 40 + "{{ s }}",
        "{% set r = range(1000)|list %}" + "{% set r = [r] * 1000 %}{% set r = r|sum(start=[]) %}" * 3 + "{{ r|length }}",
        "{% for a in range(1000) %}" + "x" * 1000 + "{% endfor %}",
    ],
)
def test_a_message_that_would_fill_the_memory_is_refused(source: str) -> None:
    """When it is read, or when it runs."""
    with pytest.raises((TaskFailed, ValueError)):
        rendered(TextTemplate, source)


LOOPS = "{% set r = range(1000) %}" + "".join(f"{{% for a{n} in r %}}" for n in range(6)) + "{% endfor %}" * 6
FILTERS = "{% set a = 'x' * 1000 %}" + "{% set a = a ~ a %}" * 7 + "{{ a|join|length }}" * 600


@pytest.mark.parametrize("source", [LOOPS, FILTERS], ids=["loops", "filters"])
def test_a_message_that_would_take_for_ever_is_refused(source: str) -> None:
    began = time.process_time()
    with pytest.raises(TaskFailed, match=r"line 1: it takes longer than 1 s"):
        rendered(TextTemplate, source)
    assert time.process_time() - began < 60


def test_the_largest_message_is_still_made() -> None:
    assert len(rendered(TextTemplate, "{% for a in range(190) %}{{ 'x' * 1000 }}{% endfor %}")) == 190_000 < MAX_MESSAGE


def test_whoever_has_no_template_needs_no_jinja2() -> None:
    said = subprocess.run([sys.executable, "-c", "import sys, taskyard; print('jinja2' in sys.modules)"], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"
