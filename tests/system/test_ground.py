"""The ground that faults are tried on does what it says: else the tests on it would prove nothing."""

from __future__ import annotations

from contextlib import closing

import psycopg
import pytest
from kombu import Connection, Queue

from tests.ground import Ground, answers, delete, purge
from tests.stack import until


def _value(url: str, statement: str) -> object:
    with psycopg.connect(url, connect_timeout=2) as connection:
        row = connection.execute(statement).fetchone()
    return row and row[0]


def test_a_killed_postgres_comes_back_with_what_was_committed_at_the_same_url(healed: Ground) -> None:
    url = healed.postgres.url
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 7 AS seven")
    healed.postgres.kill()
    with pytest.raises(psycopg.OperationalError):
        _value(url, "SELECT 1")
    healed.postgres.start()
    assert healed.postgres.url == url
    assert _value(url, "SELECT seven FROM kept") == 7


def test_a_killed_broker_comes_back_at_the_same_url_and_rabbitmq_keeps_its_messages(healed: Ground) -> None:
    url = healed.broker.url
    queue = Queue("kept", durable=True)
    with Connection(url, transport_options={"confirm_publish": True}) as connection:
        connection.Producer().publish({"kept": True}, routing_key=queue.name, declare=[queue], delivery_mode=2)
    healed.broker.kill()
    assert not answers(url)
    healed.broker.start()
    with Connection(url) as connection, connection.channel() as channel:
        bound = queue.bind(channel)
        bound.declare()
        assert (bound.get() is not None) == (healed.kind == "rabbitmq")
    purge(url, queue.name)
    delete(url, queue.name)


def test_frozen_servers_take_connections_and_say_nothing(healed: Ground) -> None:
    healed.postgres.freeze()
    with pytest.raises(psycopg.OperationalError):
        _value(healed.postgres.url, "SELECT 1")
    healed.postgres.thaw()
    assert _value(healed.postgres.url, "SELECT 1") == 1


def test_the_proxy_cuts_refuses_and_hangs_and_passes_on_what_was_sent_meanwhile(healed: Ground) -> None:
    proxy = healed.to_postgres
    url = proxy.url_of(healed.postgres.url)
    with psycopg.connect(url, autocommit=True) as connection:
        proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        _value(url, "SELECT 1")
    proxy.heal()
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS late ()")
        proxy.hang()
        connection.pgconn.send_query(b"DROP TABLE late")
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            _value(url, "SELECT 1")
        assert _value(healed.postgres.url, "SELECT to_regclass('late') IS NOT NULL")
        proxy.heal()
        until(lambda: _value(healed.postgres.url, "SELECT to_regclass('late') IS NULL"))


@pytest.mark.parametrize("forward", [True, False])
def test_a_trap_cuts_once_at_the_commit_and_the_server_gets_it_or_not(healed: Ground, forward: bool) -> None:
    url = healed.to_postgres.url_of(healed.postgres.url)
    with psycopg.connect(healed.postgres.url) as connection:
        connection.execute("DROP TABLE IF EXISTS caught; CREATE TABLE caught (word text)")
    trap = healed.to_postgres.cut_at(b"mouse", forward=forward)
    for word in ("cat", "mouse", "mouse again"):
        connection = psycopg.connect(url)
        connection.execute("INSERT INTO caught VALUES (%s)", [word])
        if word == "mouse":
            with pytest.raises(psycopg.OperationalError):
                connection.commit()
            assert trap.sprung.is_set()
        else:
            connection.commit()
        connection.close()
    expected = 3 if forward else 2
    until(lambda: _value(healed.postgres.url, "SELECT count(*) FROM caught") == expected)


def test_the_broker_too_is_reached_through_its_proxy(healed: Ground) -> None:
    with Connection(healed.to_broker.url_of(healed.broker.url)) as connection:
        queue = Queue("proxied")
        connection.Producer().publish({"a": 1}, routing_key=queue.name, declare=[queue])
        message = queue.bind(connection.default_channel).get()
        assert message.payload == {"a": 1}
        message.ack()
    assert healed.to_broker.connections >= 1
    delete(healed.broker.url, "proxied")
