"""How a batch handler is declared, tested by its author, and how its tasks find together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from taskyard import Context, InvalidHandler, InvalidInput, Retry, RetryLater, TaskCancelled, TaskFailed, handler
from taskyard.testing import run_batch, run_handler
from taskyard_worker.work import bunch


class Mail(BaseModel):
    to: str


class Sent(BaseModel):
    number: int


@handler("mail.batch", batch=100, retry=Retry(max_attempts=2, base=10))
def send(mails: list[Mail], contexts: list[Context]) -> list[Sent | Exception]:
    """Send mails."""
    found: list[Sent | Exception] = []
    for number, (mail, ctx) in enumerate(zip(mails, contexts, strict=True)):
        ctx.progress(1, mail.to)
        if ctx.cancelled():
            found.append(TaskCancelled())
        elif mail.to == "nobody":
            found.append(TaskFailed("nobody", code="no-such"))
        elif mail.to == "later":
            found.append(RetryLater(delay=3))
        elif mail.to == "boom":
            raise KeyError("boom")
        else:
            ctx.submit("mail.log", {"to": mail.to})
            found.append(Sent(number=number))
    return found if mails[0].to != "few" else []


@handler("mail.embed", batch=2)
async def embed(mails: Sequence[Mail]) -> Sequence[float | Exception]:
    """Embed mails."""
    return [float(len(mail.to)) for mail in mails]


def test_schemas_are_of_one_payload_and_one_result() -> None:
    assert send.payload_schema()["properties"] == {"to": {"title": "To", "type": "string"}}
    assert send.result_schema()["properties"] == {"number": {"title": "Number", "type": "integer"}}
    assert (embed.payload_schema()["title"], embed.result_schema()) == ("Mail", {"type": "number"})
    assert (send.batch, send.wants_context, embed.wants_context) == (100, True, False)


def test_a_batch_handler_that_answers_only_errors_has_no_result() -> None:
    @handler("mail.refuse", batch=5)
    def refuse(mails: list[Mail]) -> list[TaskFailed | None]:
        """Refuse."""
        return [TaskFailed("no") for _ in mails]

    @handler("mail.reject", batch=5)
    def reject(mails: list[Mail]) -> list[TaskFailed]:
        """Reject."""
        return [TaskFailed("no") for _ in mails]

    assert refuse.result_schema() == reject.result_schema() == {"type": "null"}


def _one(mail: Mail) -> list[Sent]:
    return []


def _no_list(mails: list[Mail]) -> Sent:
    return Sent(number=0)


@pytest.mark.parametrize(("function", "told"), [(_one, "the payload parameter 'mail' as list"), (_no_list, "the return value as list")])
def test_a_batch_handler_takes_and_returns_lists(function: Any, told: str) -> None:
    with pytest.raises(InvalidHandler, match=told):
        handler("a.b", batch=5)(function)


@pytest.mark.parametrize("options", [{"batch": 0}, {"batch": 1001}, {"batch": 5, "bundle": 5}])
def test_a_batch_is_of_1_to_1000_and_needs_no_bundle(options: dict[str, int]) -> None:
    with pytest.raises(InvalidHandler):
        handler("a.b", **options)  # type: ignore[call-overload]  # numbers by name


def test_authors_test_a_batch_with_run_batch() -> None:
    runs = run_batch(send, [{"to": "ann"}, {"to": "nobody"}, Mail(to="later"), {"to": "stop"}], cancelled=[3], other_types=["mail.log"])
    assert [(run.status, run.code, run.delay) for run in runs] == [
        ("succeeded", None, None),
        ("failed", "no-such", None),
        ("scheduled", "retry-later", 3),
        ("cancelled", None, None),
    ]
    assert runs[0].result == {"number": 0}
    assert [len(run.submissions) for run in runs] == [1, 0, 0, 0]
    assert runs[1].progress == [(1.0, "nobody")]
    assert {(run.status, run.code, run.delay) for run in run_batch(send, [{"to": "ann"}, {"to": "boom"}], other_types=["mail.log"])} == {
        ("scheduled", "KeyError", 10)
    }
    assert {(run.status, run.code) for run in run_batch(send, [{"to": "boom"}], attempt=2)} == {("failed", "KeyError")}
    assert {(run.status, run.code) for run in run_batch(send, [{"to": "few"}, {"to": "x"}], other_types=["mail.log"])} == {("failed", "invalid-result")}
    assert [run.result for run in run_batch(embed, [{"to": "a"}, {"to": "bb"}])] == [1.0, 2.0]
    with pytest.raises(InvalidInput):
        run_batch(send, [{"too": "ann"}])


def test_run_handler_runs_a_batch_of_one() -> None:
    assert run_handler(send, {"to": "ann"}, other_types=["mail.log"]).result == {"number": 0}
    assert run_handler(send, {"to": "nobody"}).code == "no-such"
    assert run_handler(embed, {"to": "abc"}).result == 3.0


def _row(number: int, type_: str = "mail.batch", **fields: Any) -> tuple[Any, int]:
    return {"id": number, "type": type_, "namespace": "default", "timeout": 60.0, "attempt": 1, "lost": 0} | fields, number


def _bunched(*rows: tuple[Any, int]) -> list[list[int]]:
    return [[number for _, number in together] for together in bunch(rows, {"mail.batch": send, "old.batch": send, "mail.embed": embed, "plain": PLAIN})]


@handler("plain")
def plain(mail: Mail) -> None:
    """Be plain."""


PLAIN = plain


def test_together_go_tasks_of_one_handler_up_to_its_batch_and_others_go_alone() -> None:
    rows = [_row(1), _row(2, "plain"), _row(3, "mail.embed"), _row(4), _row(5, "mail.embed"), _row(6, "mail.embed"), _row(7, "old.batch")]
    assert _bunched(*rows, _row(8, "plain")) == [[1, 4, 7], [2], [3, 5], [6], [8]]


def test_what_was_lost_goes_alone_and_what_is_tried_again_in_ever_smaller_company() -> None:
    assert _bunched(_row(1), _row(2, lost=1), _row(3), _row(4, lost=2)) == [[1, 3], [2], [4]]
    second = [_row(number, attempt=2) for number in range(25)]
    assert list(map(len, _bunched(*second))) == [10, 10, 5]
    assert list(map(len, _bunched(*[_row(number, attempt=3) for number in range(3)]))) == [1, 1, 1]
    assert list(map(len, _bunched(_row(1), _row(2, attempt=2), _row(3), _row(4, attempt=900)))) == [2, 1, 1]


def test_what_differs_in_namespace_or_timeout_does_not_share_a_call() -> None:
    assert _bunched(_row(1), _row(2, namespace="other"), _row(3, timeout=5.0), _row(4), _row(5, timeout=5.0)) == [[1, 4], [2], [3, 5]]
