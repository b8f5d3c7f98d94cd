"""When a delivery may go: in its task's order, at its route's rate, and while its route is on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError
from sqlalchemy import RowMapping, text

from taskyard import deliveries
from taskyard.deliveries import Due, Tried
from taskyard.errors import ConfigurationError, NotFound
from taskyard.plugins import check_routes, load_plugins
from taskyard.routes import disable, enable, sync_routes
from taskyard.settings import Route

from .life import Life

EVENTS = ("task.submitted", "task.held", "task.released", "task.cancelled")


def route(name: str = "all", **fields: Any) -> Route:
    return Route(**{"name": name, "notifier": "log", "events": EVENTS} | fields)


def sync(life: Life, *routes: Route) -> None:
    with life.engine.begin() as connection:
        sync_routes(connection, routes)


def dispatch(life: Life, limit: int = 1000) -> list[Due]:
    with life.engine.begin() as connection:
        return deliveries.dispatch(connection, limit, 60, 3)


def sent(life: Life, limit: int = 1000) -> list[int]:
    """Ids that are handed to the broker now."""
    return [one.id for one in dispatch(life, limit) if not one.dead and not one.waits]


def claim(life: Life, ids: Sequence[int]) -> list[RowMapping]:
    with life.engine.begin() as connection:
        return deliveries.claim(connection, ids, 60)


def end(life: Life, ids: Sequence[int], outcome: Any = "delivered", **fields: Any) -> list[str]:
    """Claim and end them; answers their statuses."""
    with life.engine.begin() as connection:
        tried = [Tried(row["id"], row["fence"], outcome, **fields) for row in deliveries.claim(connection, ids, 60)]
        return [row["status"] for one in tried for row in deliveries.finish(connection, [one], 3)]


def of(life: Life, task: UUID) -> list[int]:
    return life.column("SELECT id FROM deliveries WHERE task_id = :task ORDER BY id", task=task)


def four(life: Life) -> UUID:
    """A task with four events."""
    task = life.submit()
    for verb in ("hold", "release", "cancel"):
        life.person(verb, task)
    return task


def test_events_of_one_task_go_one_after_the_other_and_other_tasks_beside(life: Life) -> None:
    sync(life, route())
    first, second = of(life, four(life)), of(life, four(life))
    assert sent(life) == [first[0], second[0]]
    assert sent(life) == []
    end(life, [first[0]])
    assert sent(life) == [first[1]]
    end(life, [first[1]])
    end(life, [second[0]])
    assert sent(life) == [first[2], second[1]]
    end(life, [first[2]])
    assert sent(life) == [first[3]]


def test_routes_do_not_wait_for_each_other(life: Life) -> None:
    sync(life, route("a"), route("b"))
    task = four(life)
    assert len(sent(life)) == 2
    assert len(of(life, task)) == 8


def test_a_failed_try_lets_the_others_pass(life: Life) -> None:
    sync(life, route())
    ids = of(life, four(life))
    assert sent(life) == ids[:1]
    assert end(life, ids[:1], "retry", delay=3600.0) == ["pending"]
    assert sent(life) == ids[1:2]
    assert end(life, ids[1:2]) == ["delivered"]
    assert sent(life) == ids[2:3]


def test_a_lost_turn_is_found_again(life: Life) -> None:
    """Whoever looks before an end is committed, and writes after it, sends the next one to wait for nothing: for ten seconds."""
    sync(life, route())
    ids = of(life, four(life))
    sent(life)
    end(life, ids[:1])
    life.execute("UPDATE deliveries SET next_try_at = now() + interval '10 seconds' WHERE id = :id", id=ids[1])
    assert sent(life) == []
    life.execute("UPDATE deliveries SET next_try_at = now() WHERE next_try_at IS NOT NULL")
    assert sent(life) == ids[1:2]


def test_many_dispatchers_and_senders_keep_the_order_of_every_task(life: Life) -> None:
    sync(life, route())
    tasks = [four(life) for _ in range(15)]
    order: list[int] = []
    lock = threading.Lock()

    def work(_: int) -> None:
        while life.column("SELECT count(*) FROM deliveries WHERE next_try_at IS NOT NULL") != [0]:
            for id_ in sent(life, 20):
                with lock:
                    order.append(id_)
                end(life, [id_])
            # What lost its turn in a race is due again in seconds; here, at once.
            life.execute("UPDATE deliveries SET next_try_at = now() WHERE status = 'pending' AND next_try_at > now()")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    for task in tasks:
        ids = of(life, task)
        assert [id_ for id_ in order if id_ in ids] == ids


# --- rates ---


def slots(life: Life) -> list[datetime]:
    return life.column("SELECT slot_at FROM deliveries WHERE slot_at IS NOT NULL ORDER BY id")


def test_what_is_over_the_rate_waits_for_times_that_are_evenly_spaced(life: Life) -> None:
    sync(life, route(rate="30/m"), route("free"))
    for _ in range(5):
        life.submit()
    assert len(sent(life)) == 5 + 1
    assert [(b - a).total_seconds() for a, b in pairwise(slots(life))] == [2.0] * 4
    life.submit()
    assert len(sent(life)) == 1, "the one of the route without a rate"
    assert [(b - a).total_seconds() for a, b in pairwise(slots(life))] == [2.0] * 5
    life.execute("UPDATE deliveries SET slot_at = slot_at - interval '4 seconds', next_try_at = next_try_at - interval '4 seconds' WHERE status = 'pending'")
    assert len(sent(life)) == 2


def test_two_dispatchers_give_no_time_twice(life: Life) -> None:
    sync(life, route(rate="10/s"))
    for _ in range(40):
        life.submit()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: dispatch(life), range(8)))
    given = slots(life)
    assert len(given) == 40
    assert min((b - a).total_seconds() for a, b in pairwise(sorted(given))) >= 0.1


def test_a_further_try_waits_for_a_time_too(life: Life) -> None:
    sync(life, route(rate="1/m"))
    life.submit()
    (id_,) = sent(life)
    assert end(life, [id_], "retry", delay=0.0) == ["pending"]
    assert sent(life) == []
    (slot,) = slots(life)
    life.submit()
    dispatch(life)
    assert (slots(life)[1] - slot).total_seconds() == 60


def test_what_missed_its_time_gets_another_and_does_not_come_at_once(life: Life) -> None:
    sync(life, route(rate="1/s"))
    for _ in range(10):
        life.submit()
    dispatch(life, 1)
    life.execute("UPDATE deliveries SET slot_at = slot_at - interval '1 hour', next_try_at = next_try_at - interval '1 hour' WHERE status = 'pending'")
    life.execute("UPDATE routes SET free_at = free_at - interval '1 hour'")
    assert len(sent(life)) == 1


def test_another_rate_counts_for_what_waits_already(life: Life) -> None:
    sync(life, route(rate="1/d"))
    for _ in range(3):
        life.submit()
    assert len(sent(life)) == 1
    sync(life, route())
    assert len(sent(life)) == 2


@pytest.mark.parametrize(
    "wrong", [{"rate": "0/m"}, {"rate": "5"}, {"rate": "5/w"}, {"every": "0s"}, {"every": "often"}, {"first": 101}, {"events": ["task.gone"]}]
)
def test_a_wrong_rate_or_period_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        route(**wrong)


# --- namespaces, and routes that are switched off ---


def test_namespaces_choose_too(life: Life) -> None:
    sync(life, route(namespaces=["a", "b"]))
    tasks = {name: life.submit(namespace=name) for name in ("a", "b", "c")}
    assert {name: len(of(life, task)) for name, task in tasks.items()} == {"a": 1, "b": 1, "c": 0}


def test_a_receiver_that_is_gone_switches_its_route_off(life: Life) -> None:
    sync(life, route(), route("other"))
    for _ in range(3):
        life.submit()
    (first, *_) = sent(life, 2)
    assert end(life, [first], "dead", detail="HTTP 410", gone=True) == ["dead"]
    task = life.submit()
    assert len(of(life, task)) == 1, "only the other route is told"
    life.execute("UPDATE deliveries SET status = 'pending', next_try_at = now() WHERE next_try_at IS NOT NULL AND route = 'all'")
    assert [one.dead for one in dispatch(life)].count(True) == 2
    causes = life.column("SELECT tries -> -1 ->> 'detail' FROM deliveries WHERE route = 'all' ORDER BY id")
    assert causes == ["HTTP 410", *["the route is switched off: HTTP 410"] * 2]


def switched_off(life: Life) -> bool:
    return life.column("SELECT disabled_at IS NOT NULL FROM routes") == [True]


def test_a_route_is_on_again_by_hand_or_when_its_configuration_changes(life: Life) -> None:
    sync(life, route(options={"url": "a"}))
    for again in (lambda c: enable(c, "all"), lambda c: sync_routes(c, [route(options={"url": "b"})])):
        with life.engine.begin() as connection:
            assert disable(connection, "all", "410")
            assert not disable(connection, "all", "410")
        sync(life, route(options={"url": "a"}))
        assert switched_off(life)
        with life.engine.begin() as connection:
            again(connection)
        assert not switched_off(life)
        sync(life, route(options={"url": "a"}))
    with life.engine.begin() as connection, pytest.raises(NotFound, match="'all'"):
        enable(connection, "al")


def test_the_database_does_not_know_a_routes_options(life: Life) -> None:
    sync(life, route(options={"secret": "hush-hush"}))
    with life.engine.connect() as connection:
        assert "hush-hush" not in str(connection.execute(text("SELECT * FROM routes")).all())


def test_no_route_has_the_name_of_a_subscription() -> None:
    registry = load_plugins(only=["log"])
    with pytest.raises(ConfigurationError, match="'notify/0': names that begin with notify/"):
        check_routes(registry, [route("notify/0")])
