"""What plugin authors test with: it tells the outcome that a worker would record, and finds what a plugin lacks."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel, Field

from taskyard import Context, InvalidInput, Retry, RetryLater, TaskFailed, handler
from taskyard.testing import Answer, NotStarted, assert_plugin_conforms, check_plugin, make_event, receiver, run_handler, running_taskyard


class Add(BaseModel):
    numbers: list[int] = Field(alias="n")
    how: str = "plain"


@handler("sum.add", retry=Retry(max_attempts=2, base=10))
def add(payload: Add, ctx: Context) -> int:
    """Add numbers, or end as the payload asks."""
    ctx.raise_if_cancelled()
    ctx.progress(0.5, "half")
    ctx.submit("sum.next", {"from": ctx.attempt}, queue="later")
    if payload.how == "later":
        raise RetryLater(delay=7)
    if payload.how == "fail":
        raise TaskFailed("no", code="no")
    if payload.how == "break":
        raise KeyError("x")
    return sum(payload.numbers)


@handler("sum.wait")
async def wait(payload: dict[str, Any]) -> Any:
    """Wait until somebody ends it, or give back what came in."""
    if not payload:
        await asyncio.Event().wait()
    return payload


def test_a_success_has_result_progress_and_submissions() -> None:
    run = run_handler(add, {"n": [1, 2]}, other_types=["sum.next"])
    assert (run.status, run.result, run.progress) == ("succeeded", 3, [(0.5, "half")])
    assert [(s.type, s.payload, s.options) for s in run.submissions] == [("sum.next", {"from": 1}, {"queue": "later"})]


@pytest.mark.parametrize(
    ("how", "attempt", "expected"),
    [
        ("later", 1, ("scheduled", "retry-later", 7)),
        ("later", 2, ("failed", "retry-later", None)),
        ("fail", 1, ("failed", "no", None)),
        ("break", 1, ("scheduled", "KeyError", 10)),
        ("break", 2, ("failed", "KeyError", None)),
    ],
)
def test_a_run_that_did_not_succeed_tells_what_becomes_of_the_task(how: str, attempt: int, expected: tuple[Any, ...]) -> None:
    run = run_handler(add, {"n": [], "how": how}, attempt=attempt, other_types=["sum.next"])
    assert (run.status, run.code, run.delay) == expected
    assert run.submissions == []


def test_a_cancelled_task_and_one_past_its_timeout_end_as_such() -> None:
    assert run_handler(add, {"n": []}, cancelled=True).status == "cancelled"
    assert run_handler(wait, {}, timeout=0.01).code == "timeout"


def test_a_payload_is_refused_as_at_submission() -> None:
    with pytest.raises(InvalidInput, match="/n/1") as caught:
        run_handler(add, {"n": [1, "x"]})
    assert caught.value.problems[0][0] == "/n/1"


@handler("sum.lie")
def lie(payload: dict[str, Any]) -> int:
    """Give back something else than declared."""
    return payload  # type: ignore[return-value]  # that is the test


def test_a_result_of_another_type_than_declared_is_found() -> None:
    assert run_handler(lie, {}).code == "invalid-result"


def test_a_result_that_can_not_be_stored_is_found() -> None:
    run = run_handler(wait, {"a": "\x00"})
    assert (run.status, run.code) == ("failed", "invalid-result")
    assert "/a" in str(run.error)


def test_an_event_made_for_a_test_is_a_whole_cloudevent() -> None:
    made = make_event("task.failed").to_cloudevent()
    assert {"specversion", "id", "source", "type", "subject", "time"} <= set(made)
    assert made["data"]["task"]["status"] == "failed"


@pytest.mark.parametrize(
    ("name", "options"),
    [("http", {}), ("log", {}), ("webhook", {}), ("process", {}), ("process", {"commands": {"true": {"path": "/bin/true"}}})],
)
def test_the_plugins_that_ship_conform(name: str, options: dict[str, Any]) -> None:
    assert_plugin_conforms(name, options)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Put a plugin's source on sys.path with the metadata of an installed distribution; answers its name."""

    def put(source: str) -> str:
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "strange_plugin", raising=False)
        (tmp_path / "strange_plugin.py").write_text("from taskyard import handler, hookimpl\nfrom pydantic import BaseModel\n" + dedent(source))
        info = tmp_path / "strange-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\nRequires-Dist: taskyard>=0.1\n")
        (info / "entry_points.txt").write_text("[taskyard.plugins]\nstrange = strange_plugin\n")
        return "strange"

    return put


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import asyncio\nraise asyncio.CancelledError('no')", "It is failed: CancelledError: no"),
        (
            "from pydantic import Field\nclass P(BaseModel):\n  n: int = Field(examples=['x'])\n@handler('a.b')\ndef f(p: P):\n  'Do.'\n"
            "@hookimpl\ndef taskyard_handlers(): return [f]",
            "handler 'a.b': payload: the example \"x\" at /properties/n does not fit its own schema",
        ),
        (
            "from pydantic import Field, field_validator\nclass P(BaseModel):\n  s: str = Field(examples=['x'])\n"
            "  @field_validator('s')\n  def longer(cls, s): return s + '!'\n"
            "@handler('a.b')\ndef f(p: P):\n  'Do.'\n@hookimpl\ndef taskyard_handlers(): return [f]",
            "can't be submitted again once it was read: The model P reads its own JSON as something else at /payload/s",
        ),
        (
            "from pydantic import Field, field_validator\nclass P(BaseModel):\n  n: int = Field(examples=[1])\n"
            "  @field_validator('n')\n  def low(cls, n):\n    raise ValueError('too low')\n"
            "@handler('a.b')\ndef f(p: P):\n  'Do.'\n@hookimpl\ndef taskyard_handlers(): return [f]",
            "handler 'a.b': the example {\"n\": 1} is refused: Value error, too low",
        ),
        (
            "import sys\nif __name__ in sys.modules and 'pytest' not in sys.modules: raise RuntimeError('only here')\n"
            "@handler('a.b')\ndef f(p: dict):\n  'Do.'\n@hookimpl\ndef taskyard_handlers(): return [f]",
            "In a process of its own it is failed: RuntimeError: only here",
        ),
        ("raise RuntimeError('no licence')", "It is failed: RuntimeError: no licence"),
        ("raise SystemExit(3)", "It is failed: SystemExit: 3"),
        ("x = 1", "implements no hook"),
        ("@hookimpl\ndef taskyard_handler(): return []", "unknown hook 'taskyard_handler'"),
        ("@handler('a.b')\ndef f(p: dict): pass\n@hookimpl\ndef taskyard_handlers(): return [f]", "handler 'a.b': its function has no docstring"),
        (
            "def make():\n  @handler('a.b')\n  def f(p: dict):\n    'Do.'\n  return f\n@hookimpl\ndef taskyard_handlers(): return [make()]",
            "make.<locals>.f can't be imported under that name; define it at module level",
        ),
        ("class C(BaseModel):\n  size: int = 1\n@hookimpl\ndef taskyard_config(): return C", "[plugins.strange]: 'size' has no description"),
        ("class C(BaseModel):\n  size: int\n@hookimpl\ndef taskyard_config(): return C", "plugins.strange.size: "),
        (
            "class N:\n  name = 'Bad Name'\n  class Options(BaseModel):\n    to: str\n  def send(self, event, options, ctx): pass\n"
            "@hookimpl\ndef taskyard_notifiers(): return [N]",
            "notifier 'Bad Name': Options: 'to' has no description",
        ),
        (
            "class N:\n  'Send.'\n  name = 'n'\n  operators_only = 'yes'\n  class Options(BaseModel): pass\n  def send(self, event, options, ctx): pass\n"
            "@hookimpl\ndef taskyard_notifiers(): return [N]",
            "operators_only is 'yes'; expected True or False",
        ),
        (
            "class N:\n  'Send.'\n  name = 'n'\n  operator_only = True\n  class Options(BaseModel): pass\n  def send(self, event, options, ctx): pass\n"
            "@hookimpl\ndef taskyard_notifiers(): return [N]",
            "reads no attribute 'operator_only'. Did you mean 'operators_only'?",
        ),
        (
            "from collections.abc import Callable\nclass P(BaseModel):\n  call: Callable[[], int]\n@handler('a.b')\ndef f(p: P):\n  'Do.'\n"
            "@hookimpl\ndef taskyard_handlers(): return [f]",
            "handler 'a.b': payload: no JSON Schema can be built",
        ),
        (
            "from pydantic import Field\nfrom typing import Annotated\n@handler('a.b')\n"
            "def f(p: Annotated[dict, Field(json_schema_extra={'type': 'nonsense'})]):\n"
            "  'Do.'\n@hookimpl\ndef taskyard_handlers(): return [f]",
            "handler 'a.b': payload: its JSON Schema can't be shown: the whole schema (at /type): it is not valid",
        ),
    ],
)
def test_what_a_plugin_lacks_is_told_in_a_sentence(install: Callable[[str], str], source: str, told: str) -> None:
    problems = check_plugin(install(source))
    assert any(told in problem for problem in problems), problems
    with pytest.raises(AssertionError, match="does not conform"):
        assert_plugin_conforms("strange")


def test_payloads_that_arrive_as_they_are_submitted_and_handlers_of_all_kinds_conform(install: Callable[[str], str]) -> None:
    source = """
    import functools
    from pydantic import Field, Json, SecretStr
    class P(BaseModel):
        secret: SecretStr = Field(examples=["x"])
        inside: Json[list[SecretStr]] = Field(examples=['["y"]'])
        written: int = Field(1, serialization_alias="writtenAs")
    class Counter:
        def __call__(self, p: P) -> int:
            "Count."
            return 1
        def method(self, p: P) -> int:
            "Count, too."
            return 2
    def of_two(first: int, p: P) -> int:
        "Count up."
        return first
    HANDLERS = [handler("a.object")(Counter()), handler("a.method")(Counter().method), handler("a.partial")(functools.partial(of_two, 3))]
    @hookimpl
    def taskyard_handlers(): return HANDLERS
    """
    assert check_plugin(install(source)) == []


def test_a_plugin_that_is_not_installed_is_told_with_the_near_one() -> None:
    assert check_plugin("htp") == ["No plugin 'htp' is installed. Did you mean 'http'?"]


def test_a_run_keeps_what_its_handler_logged() -> None:
    @handler("sum.talk")
    def talk(payload: dict[str, Any], ctx: Context) -> None:
        """Talk."""
        ctx.log.bind(page=1).warning("slow %s", "page", size=3)

    (line,) = run_handler(talk, {}).logs
    assert (line.level, line.message, line.fields) == ("warning", "slow page", {"page": 1, "size": 3})


@pytest.mark.parametrize(
    ("how", "events", "data"),
    [
        ("plain", ["task.started", "task.progress", "task.succeeded"], {}),
        ("fail", ["task.started", "task.progress", "task.failed"], {"error": {"code": "no", "message": "no"}}),
        ("later", ["task.started", "task.progress", "task.retrying"], {"error": {"code": "retry-later", "message": "asked to run again later"}, "delay": 7}),
    ],
)
def test_a_run_has_the_events_that_notifiers_would_get(how: str, events: list[str], data: dict[str, Any]) -> None:
    run = run_handler(add, {"n": [], "how": how}, tags=("a",), other_types=["sum.next"])
    assert [event.type for event in run.events] == events
    assert run.events[0].data == {"worker": "test", "fence": 1}
    assert run.events[-1].data == data
    assert (run.events[-1].task.type, run.events[-1].task.status, run.events[-1].task.tags) == ("sum.add", run.status, ("a",))


def test_a_receiver_records_and_answers_as_it_is_told() -> None:
    with receiver() as site:
        site.answer(503, Answer(200, "later", {"x-a": "b"}), Answer(close=True))
        with httpx2.Client(trust_env=False) as client:
            assert client.post(f"{site.url}hook?a=1", json={"b": 2}, headers={"X-C": "d"}).status_code == 503
            answer = client.get(site.url)
            assert (answer.text, answer.headers["x-a"]) == ("later", "b")
            with pytest.raises(httpx2.TransportError):
                client.get(site.url)
            assert client.put(site.url).status_code == 200
        first = site.wait(4)[0]
        assert (first.method, first.path, first.headers["x-c"], first.json()) == ("POST", "/hook?a=1", "d", {"b": 2})
        with pytest.raises(TimeoutError, match="4 of 5 requests"):
            site.wait(5, timeout=0)


def test_a_receiver_that_is_slow_to_answer_is_closed_at_once() -> None:
    with receiver() as site:
        site.answer(Answer(delay=3600))
        with httpx2.Client(trust_env=False, timeout=0.05) as client, pytest.raises(httpx2.ReadTimeout):
            client.get(site.url)
        site.wait(1)


def test_pytest_finds_the_fixtures_and_no_run_pays_for_them(tmp_path: Path) -> None:
    (tmp_path / "test_alone.py").write_text(
        "import sys\n\ndef test_nothing_of_taskyard_is_imported(request):\n    assert not any(name.partition('.')[0] == 'taskyard' for name in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "--fixtures", "--rootdir", str(tmp_path), str(tmp_path)], capture_output=True, text=True)
    assert {"taskyard", "taskyard_toml", "taskyard_receiver"} <= set(re.findall(r"^(\w+)", run.stdout, re.MULTILINE)), run.stdout
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "--rootdir", str(tmp_path), str(tmp_path)], capture_output=True, text=True)
    assert "1 passed" in run.stdout, run.stdout


def test_a_service_that_can_not_start_says_why() -> None:
    with pytest.raises(NotStarted, match="no such setting"), running_taskyard(toml="[database]\nurll = 'x'\n"):
        pass


PICKY = """
from pydantic import Field
class P(BaseModel):
  n: int = Field(examples=[1])
  def model_post_init(self, context): {}['too much'] if self.n > 10 else None
@handler('a.b')
def f(p: P):
  'Do.'
@hookimpl
def taskyard_handlers(): return [f]
"""


def test_odd_payloads_find_a_model_that_answers_with_something_else_than_a_validation_error(install: Callable[[str], str]) -> None:
    name = install(PICKY)
    assert check_plugin(name) == []
    (problem,) = check_plugin(name, fuzz=200)
    assert problem == "handler 'a.b': the payload {\"n\": 11} is answered by KeyError: 'too much'"


def test_odd_payloads_do_no_harm_to_a_model_that_refuses_what_it_must(install: Callable[[str], str]) -> None:
    source = """
from typing import Literal
from pydantic import Field
class Node(BaseModel):
  kind: Literal['a', 'b'] = 'a'
  size: int | None = Field(None, ge=0)
  inner: list['Node'] = []
@handler('a.b')
def f(p: Node):
  'Do.'
@hookimpl
def taskyard_handlers(): return [f]
"""
    assert check_plugin(install(source), fuzz=200) == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return p", None),
        ("return ctx.fence, str(ctx.task_id)", None),
        ("return id(object()), __import__('random').random()", "with the same (task_id, fence) differ"),
        ("raise RuntimeError('no network')", "did not succeed: RuntimeError: no network"),
    ],
)
def test_a_handler_that_is_run_twice_as_one_run_must_give_the_same(install: Callable[[str], str], body: str, told: str | None) -> None:
    name = install(
        "from typing import Annotated, Any\nfrom pydantic import Field\n@handler('a.b')\n"
        f"def f(p: Annotated[dict, Field(examples=[{{}}])], ctx) -> Any:\n  'Do.'\n  {body}\n@hookimpl\ndef taskyard_handlers(): return [f]"
    )
    problems = check_plugin(name, twice=True)
    assert problems == [] if told is None else told in problems[0], problems


def test_a_plugin_that_says_nothing_of_versions_is_told_so(install: Callable[[str], str], tmp_path: Path) -> None:
    name = install("@handler('a.b')\ndef f(p: dict):\n  'Do.'\n@hookimpl\ndef taskyard_handlers(): return [f]")
    (tmp_path / "strange-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    (problem,) = check_plugin(name)
    assert "does not say which versions of Taskyard it works with" in problem
