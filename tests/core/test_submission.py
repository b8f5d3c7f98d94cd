"""What a submission becomes, seen from Python: the door that ctx.submit uses too."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pluggy
import pytest
from pydantic import BaseModel, ConfigDict

from taskyard import Retry, handler, hookspecs
from taskyard.errors import InvalidInput, UnknownTaskType
from taskyard.plugins import Plugin, Registry
from taskyard.records import NewTask
from taskyard.submission import prepare


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    when: datetime
    parts: tuple[int, ...] = ()


@handler("strict", retry=Retry(max_attempts=4), timeout=12, queue="q", priority=2)
async def strict(payload: Strict) -> None: ...


@handler("anything")
def anything(payload: Any) -> None: ...


@pytest.fixture(scope="module")
def registry() -> Registry:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    return Registry([Plugin("sample", handlers=[strict, anything])], manager)


def made(registry: Registry, **fields: Any) -> NewTask:
    return prepare(registry, {"type": "anything", "payload": {}, **fields})


def test_the_handlers_defaults_and_lane_are_filled_in(registry: Registry) -> None:
    new = prepare(registry, {"type": "strict", "payload": {"when": "2030-01-01T00:00:00Z"}}, namespace="theirs")
    assert (new.queue, new.lane, new.priority, new.timeout, new.max_attempts, new.namespace) == ("q", "async", 2, 12.0, 4, "theirs")
    assert new.id.version == 7
    assert made(registry).lane == "sync"


def test_ids_that_are_given_are_kept(registry: Registry) -> None:
    id_, parent = uuid.uuid4(), uuid.uuid4()
    new = prepare(registry, {"type": "anything", "payload": 1}, id=id_, parent_id=parent)
    assert (new.id, new.parent_id) == (id_, parent)


def test_a_payload_is_checked_by_json_rules_and_kept_as_sent(registry: Registry) -> None:
    payload = {"when": "2030-01-01T00:00:00Z", "parts": [1, 2], "later": "unknown to this version"}
    assert prepare(registry, {"type": "strict", "payload": payload}).payload == payload


def test_python_callers_may_pass_aware_times_and_tuples(registry: Registry) -> None:
    noon = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    new = made(registry, run_at=noon, tags=("a", "b"))
    assert (new.run_at, new.tags) == (datetime(2030, 1, 1, 10, tzinfo=UTC).isoformat(), ("a", "b"))


@pytest.mark.parametrize("payload", [float("nan"), {"a": object()}, {"a": {1, 2}}, "\ud800", ["\x00"]])
def test_what_is_no_json_is_refused(registry: Registry, payload: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        made(registry, payload=payload)
    assert caught.value.problems[0][0].startswith("/payload")


@pytest.mark.parametrize("where", ["payload", "metadata"])
def test_a_negative_zero_is_refused_with_its_place(registry: Registry, where: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        made(registry, **{"type": "anything", "payload": 1, where: {"x": -0.0}})
    assert [pointer for pointer, _ in refused.value.problems] == [f"/{where}/x"]


def test_an_unknown_type_names_near_ones(registry: Registry) -> None:
    with pytest.raises(UnknownTaskType) as caught:
        prepare(registry, {"type": "anythin", "payload": 1})
    assert caught.value.near == ("anything",)


@pytest.mark.parametrize(
    "time", ["2030-01-01T00:00:00z", "2030-01-01t00:00:00.123456+00:00", "2030-01-01 00:00:00Z", "1970-01-01T00:00:00Z", "9999-12-30T00:00:00Z"]
)
def test_rfc_3339_times_are_taken(registry: Registry, time: str) -> None:
    assert made(registry, run_at=time).run_at is not None


@pytest.mark.parametrize(
    "time", ["2030-01-01T00:00Z", "20300101T000000Z", "2030-W01-1T00:00:00Z", "2030-01-01T24:00:00Z", "2030-01-01T00:00:60Z", "٢٠٣٠-01-01T00:00:00Z", True, 1.5]
)
def test_other_times_are_not(registry: Registry, time: Any) -> None:
    with pytest.raises(InvalidInput):
        made(registry, run_at=time)
