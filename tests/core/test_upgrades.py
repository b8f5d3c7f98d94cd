"""Renamed types and payloads of an older shape, as the plugin host and a handler's reader see them."""

from __future__ import annotations

from typing import Any

import pluggy
import pytest
from pydantic import BaseModel, ConfigDict, model_validator

from taskyard import InvalidHandler, RetryLater, TaskFailed, handler, hookspecs
from taskyard.errors import InvalidInput, PluginConflict, UnknownTaskType
from taskyard.plugins import Plugin, Registry
from taskyard.submission import prepare
from taskyard.testing import run_handler
from taskyard.upgrades import read_payload


class Mail(BaseModel):
    model_config = ConfigDict(extra="forbid")

    recipients: list[str]


def _upgrade(stored: Any) -> Any:
    if stored["to"] == "later":
        raise RetryLater(delay=3)
    if stored["to"] == "never":
        raise TaskFailed("gone", code="gone")
    return {"recipients": [stored["to"]]}


@handler("letters.send", aliases=["mail.send", "post.send"], upgrade=_upgrade)
def send(payload: Mail) -> list[str]:
    """Send a letter."""
    return payload.recipients


@handler("mail.send")
def squatter(payload: Mail) -> None:
    """Claim a name that was another's."""


def _registry(*plugins: Plugin) -> Registry:
    return Registry(plugins, pluggy.PluginManager(hookspecs.PROJECT))


def test_a_handler_answers_to_its_aliases_and_a_task_keeps_the_name_it_was_sent_under() -> None:
    registry = _registry(Plugin("letters", handlers=[send]))
    assert list(registry.handlers) == ["letters.send"]
    assert registry.handler("post.send") is send
    task = prepare(registry, {"type": "mail.send", "payload": {"recipients": ["ann"]}})
    assert task.type == "mail.send"
    assert prepare(registry, {"type": "letters.send", "payload": {"recipients": ["ann"]}}).type == "letters.send"
    with pytest.raises(UnknownTaskType, match=r"Did you mean 'mail\.send'"):
        registry.handler("mail.sent")


def test_a_type_finds_all_that_was_stored_under_its_names_and_an_alias_only_its_own() -> None:
    registry = _registry(Plugin("letters", handlers=[send]))
    assert registry.stored_as(["letters.send"]) == ("letters.send", "mail.send", "post.send")
    assert registry.stored_as(["mail.send", "nobody.knows"]) == ("mail.send", "nobody.knows")
    assert registry.stored_as([]) == ()


def test_an_alias_that_another_plugin_claims_is_a_conflict_that_names_both() -> None:
    with pytest.raises(PluginConflict, match=r"'mail\.send'.*'letters'.*'squatters'"):
        _registry(Plugin("letters", handlers=[send]), Plugin("squatters", handlers=[squatter]))


@pytest.mark.parametrize("aliases", [["a.b"], ["x.y", "x.y"], ["Bad Name"]])
def test_an_alias_is_a_name_of_its_own(aliases: list[str]) -> None:
    with pytest.raises(InvalidHandler):
        handler("a.b", aliases=aliases)


def test_an_upgrade_is_a_plain_function() -> None:
    async def upgrade(stored: Any) -> Any:
        return stored

    with pytest.raises(InvalidHandler, match="not a coroutine"):
        handler("a.b", upgrade=upgrade)


def test_what_validates_is_not_upgraded_and_an_older_shape_is() -> None:
    assert read_payload(send, '{"recipients": ["ann"]}') == Mail(recipients=["ann"])
    assert read_payload(send, '{"to": "ann"}') == Mail(recipients=["ann"])


@pytest.mark.parametrize(("stored", "told"), [("{}", "raised KeyError: 'to'"), ('{"to": 5}', "/recipients/0"), ("[]", "raised TypeError")])
def test_an_upgrade_that_does_not_work_fails_the_task_with_one_code(stored: str, told: str) -> None:
    with pytest.raises(TaskFailed) as failed:
        read_payload(send, stored)
    assert failed.value.code == "upgrade-failed"
    assert told in str(failed.value)


def test_an_upgrade_may_say_itself_how_the_run_ends() -> None:
    with pytest.raises(RetryLater):
        read_payload(send, '{"to": "later"}')
    with pytest.raises(TaskFailed) as failed:
        read_payload(send, '{"to": "never"}')
    assert failed.value.code == "gone"


def test_what_an_upgrade_makes_must_be_json() -> None:
    @handler("odd.one", upgrade=lambda _: object())
    def odd(payload: Mail) -> None:
        """Be odd."""

    with pytest.raises(TaskFailed) as failed:
        read_payload(odd, "{}")
    assert failed.value.code == "upgrade-failed"


class Picky(BaseModel):
    n: int

    @model_validator(mode="before")
    @classmethod
    def _look(cls, value: Any) -> Any:
        return {"n": value["n"]}


def test_a_validator_that_raises_at_an_older_shape_leads_to_the_upgrade_too() -> None:
    @handler("picky.one", upgrade=lambda stored: {"n": stored["number"]})
    def picky(payload: Picky) -> None:
        """Be picky."""

    assert read_payload(picky, '{"number": 5}').n == 5


def test_without_an_upgrade_the_task_has_failed_and_its_error_says_where_the_payload_does_not_fit() -> None:
    with pytest.raises(TaskFailed, match=r"does not fit mail.send as this worker has it: /recipients: Field required") as failed:
        read_payload(squatter, '{"too": "secret"}')
    assert (failed.value.code, failed.value.details["problems"]) == (
        "invalid-payload",
        [["/recipients", "Field required"], ["/too", "unknown name."]],
    )
    assert "secret" not in str(failed.value)


def test_a_validator_that_raises_without_an_upgrade_is_told_as_the_whole_payloads_fault() -> None:
    @handler("picky.two")
    def picky(payload: Picky) -> None:
        """Be picky."""

    with pytest.raises(TaskFailed) as failed:
        read_payload(picky, "[]")
    assert (failed.value.code, failed.value.details["problems"]) == ("invalid-payload", [["", "its validator raised TypeError"]])


def test_authors_test_their_upgrades_with_run_handler() -> None:
    assert run_handler(send, {"to": "ann"}, stored=True).result == ["ann"]
    assert run_handler(send, {"recipients": ["ann"]}, stored=True).result == ["ann"]
    run = run_handler(send, {"too": "ann"}, stored=True)
    assert (run.status, run.code) == ("failed", "upgrade-failed")
    with pytest.raises(InvalidInput):
        run_handler(send, {"to": "ann"})
