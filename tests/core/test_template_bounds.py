"""No template takes a processor or the memory: not while it is read, which a web process does for its clients, and not while it runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from taskyard import DeliveryContext, TextTemplate, sandbox
from taskyard.templates import clean_text
from taskyard.testing import make_event
from tests.bounded import run_bounded

#: Written without values that the template can't compute while it is read.
CONSTANT = [
    "{{ 1|round(100000000, 'floor') }}",
    "{{ 1|round(-100000000, 'ceil') }}",
    "{{ [1]|tojson(indent=500000000) }}",
    "{{ [1]|map('round', 100000000, 'floor')|list }}",
    "{{ 'a' * 1000000000 }}{{ [1] * 1000000000 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ 'a'|center(1000000000) }}",
    "{{ 'a'|indent(1000000000) }}",
    "{{ 'a'|wordwrap(1)|indent(1000000000) }}",
    "{{ '%1000000000d'|format(1) }}{{ '%1000000000d' % 1 }}",
    "{{ '{:1000000000}'.format(1) }}{{ 'a'.zfill(1000000000) }}{{ '\\t'.expandtabs(1000000000) }}",
    "{{ range(1000000000)|list }}{{ range(1000000000)|sum }}",
    "{{ ('a' * 900)|replace('a', 'b' * 900)|replace('b', 'c' * 900) }}",
    "{{ ('a' * 1000)|list|join('b' * 1000) }}",
    "{{ [[1] * 1000] * 1000 }}",
    "{{ 'f' * 1000 ~ 'f' }}{{ ('f' * 1000)|int(0, 16) }}",
    "{% if 1|round(100000000, 'floor') %}a{% endif %}",
    "{% for a in [1]|map('round', 100000000, 'floor') %}{{ a }}{% endfor %}",
    "{% set a = 1|round(100000000, 'floor') %}{{ a }}",
    "{{ (1|round(100000000, 'floor')) if 1 else 2 }}",
    "{{ {'a': 1|round(100000000, 'floor')}['a'] }}",
]
_TEXT = "{% set a = 'a' * 1000 %}" + "{% set a = a ~ a %}" * 7
RUNNING = [
    "{{ 1|round(data.n, 'floor') }}",
    "{{ data.x|tojson(indent=data.n) }}",
    "{% set a = 9 %}" + "{% set a = a * a %}" * 60 + "{{ a }}",
    "{% set a = 9 %}" + "{% set a = a - -a %}" * 600 + "{{ a }}",
    # The whole is made of parts that are each short enough.
    _TEXT + "{{ " + " ~ ".join(["a"] * 900) + " }}",
    _TEXT + "{{ [a] * 1000 }}",
    "{% set r = range(1000)|list %}{{ r|map('replace', '', 'b' * 900)|list|length }}",
    _TEXT + "{% set r = range(1000)|map('default', a)|map('string')|list %}{{ r|map('replace', '0', a)|list|length }}",
    # Structures that hold themselves twice: comparing or hashing them takes for ever.
    "{% set a = [1] %}{% set b = [1] %}" + "{% set a = [a, a] %}{% set b = [b, b] %}" * 60 + "{{ a == b }}",
    "{% set a = {'a': 1} %}{% set b = {'a': 1} %}" + "{% set a = {'a': a, 'b': a} %}{% set b = {'a': b, 'b': b} %}" * 60 + "{{ a == b }}",
    "{% set a = (1, 2) %}" + "{% set a = (a, a) %}" * 60 + "{{ {a: 1} }}",
    "{% set a = [1] %}" + "{% set a = [a] + [a] %}" * 60 + "{{ a in [a] }}",
    # A loop whose clock is set to something else.
    "{% set _clock = data.keys %}{% set clock = data.keys %}{% set environment = data %}"
    + "".join(f"{{% for a{n} in range(1000) %}}" for n in range(8))
    + "{% endfor %}" * 8,
    # Filters and methods that would copy or search the text again and again.
    "{% set a = '<>' * 500 %}" + "{% set a = a ~ a %}" * 7 + "{{ a|striptags|length }}" * 100,
    "{% set a = '<!--' * 250 %}" + "{% set a = a ~ a %}" * 7 + "{{ a|striptags|length }}" * 100,
    _TEXT + "{% set b = 'b' ~ a %}" + "{{ a.rpartition(b)|length }}{{ a.rsplit(b)|length }}{{ a.strip(b)|length }}{{ a|trim(b)|length }}" * 90,
    _TEXT + "{{ (a ~ 'b') in (a ~ a) }}" * 100,
    "{% set a = [[1] * 100] * 1000 %}" + "{{ (a|sort|length) }}" * 300,
    "{% set a = [[1] * 100] * 900 %}" + "{{ (a|sum(start=[]))|length }}" * 300,
    # What hides how much it holds: views of tables, events, and methods, whose text has that of their object.
    "{% set v = [1] %}{% set w = [1] %}" + "{% set v = {'a': v, 'b': v}.values() %}{% set w = {'a': w, 'b': w}.values() %}" * 60 + "{{ v == w }}{{ v }}",
    "{{ [[data.items()] * 1000] * 100 }}",
    "{{ ([[event] * 1000] * 100)|string|length }}",
    "{{ [[event.to_cloudevent] * 1000] * 100 }}",
    "{{ event.time.strptime('1' * 900, '%f%d%m%H%M%S' * 20) }}",
    "{{ event.time.strftime('%c' * 1000) }}",
    "{{ {}.fromkeys(range(1000), 1) }}",
    "{% set a = [1] %}" + "{% set a = [a] %}" * 600 + "{{ a|tojson(indent=8) }}{{ a }}{{ a == [a] }}",
]

_PROBE = """
import sys
from taskyard import DeliveryContext, HtmlTemplate, TextTemplate, TaskFailed
from taskyard.testing import make_event
event = make_event("task.failed", data={{"n": 100_000_000, "x": [1], "s": "a" * 4000, "t": "b" * 4000}})
for source in {sources!r}:
    print(source[:60], flush=True)
    for kind in (TextTemplate, HtmlTemplate):
        try:
            template = kind(source)
            if {run}:
                assert len(template.render(event, DeliveryContext("d", "r"))) < 2_000_000
        except (ValueError, TaskFailed):
            pass
"""


def test_reading_a_template_computes_nothing() -> None:
    made = run_bounded(_PROBE.format(sources=CONSTANT + RUNNING, run=False), cpu=60)
    assert len(made.splitlines()) == len(CONSTANT + RUNNING)


def test_no_filter_is_called_while_a_template_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    def note(*given: Any, **named: Any) -> str:
        called.append(given)
        return ""

    environment = sandbox._environment(clean_text, False)
    for table in (environment.filters, environment.tests):
        for name in table:
            monkeypatch.setitem(table, name, note)
    made = TextTemplate("{{ 'never seen before'|upper }}{% if 1 is even %}{% endif %}{{ [1]|map('abs')|list }}{{ 1 if 2|abs else 3 }}{% set a = 'a'|upper %}")
    assert called == []
    made.render(make_event(), DeliveryContext("d", "r"))
    assert len(called) == 6


@pytest.mark.parametrize("sources", [CONSTANT, RUNNING[: len(RUNNING) // 2], RUNNING[len(RUNNING) // 2 :]], ids=["constants", "lengths", "times"])
def test_running_a_template_has_an_end(sources: list[str]) -> None:
    """Each may take a second of processor time and one step more, twice."""
    made = run_bounded(_PROBE.format(sources=sources, run=True), cpu=8 * len(sources))
    assert len(made.splitlines()) == len(sources)


_UNITS = ("{{1}}", "1,", ".a", "~1", "-1", "{%if 1%}", "{%set a=1%}", "{", "{#", "'", "(", "not ", "|upper", "()", "9", "9_", "1:1,", "[", "\n{{-1}}", "a=1,")
_AROUND = ("{}", "{{{{ data{} }}}}", "{{{{ [{}] }}}}", "{{{{ 1{} }}}}")


def test_the_longest_sources_are_read_or_refused_at_once() -> None:
    """In all they take some 5 s: a tenth of a second each, and less where the source is refused."""
    sources = [around.format(unit * (19_900 // len(unit))) for unit in _UNITS for around in _AROUND]
    made = run_bounded(_PROBE.format(sources=sources, run=False), cpu=100)
    assert made.count("\n") >= len(sources)


def test_what_messages_need_still_works() -> None:
    def shown(source: str) -> str:
        event = make_event("task.failed", data={"n": 3.14159, "xs": [{"a": 2}, {"a": 1}], "t": " <b>x</b> &amp; y ", "s": "a,b"})
        return TextTemplate(source).render(event, DeliveryContext("d", "r"))

    assert shown("{{ data.n|round(2) }} {{ data.n|round|int }} {{ 15|round(-1) }} {{ data.n|round(1, 'ceil') }}") == "3.14 3 20 3.2"
    assert json.loads(shown("{{ data.xs|tojson(indent=2) }}")) == [{"a": 2}, {"a": 1}]
    assert shown("{{ data.xs|sum('a') }} {{ data.xs|map(attribute='a')|sort|join('-') }} {{ data.xs|selectattr('a', 'gt', 1)|list|length }}") == "3 1-2 1"
    assert shown("{{ data.t|striptags }}|{{ data.t|trim }}|{{ 'xxaxx'|trim('x') }}") == "x & y|<b>x</b> &amp; y|a"
    assert shown("{{ '42'|int + 1 }} {{ 'ff'|int(0, 16) }} {{ 'x'|int(7) }} {{ data.s.split(',')|last|upper }}") == "43 255 7 B"
    assert shown("{% for k, v in {'a': 1, 'b': [1, 2]}.items() %}{{ loop.index }}{{ k }}={{ v }};{% endfor %}") == "1a=1;2b=[1, 2];"
    assert (
        shown("{{ 'a' ~ 1 ~ none ~ 'b' }} {{ 1 < 2 < 3 }} {{ 'a' in ['a'] }} {{ (1, 2)[1] }} {{ 7 % 4 }} {{ 7 // 2 }} {{ -3|abs }}")
        == "a1Noneb yes yes 2 3 3 3"
    )
    assert (
        shown("{% for k in {'b': 1, 'a': 2}.keys()|sort %}{{ k }}{% endfor %}{{ 3 in {'a': 3}.values() }}{{ event.task.queue in [task.queue] }}") == "abyesyes"
    )
    assert shown("{{ event.time.isoformat()|length > 10 }} {{ event.task_id.hex|length }} {{ event.time.year > 2000 }}") == "yes 32 yes"
