"""`taskyard doctor` finds each thing that is wrong, says what to do about it, and answers in time whatever is missing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Queue
from sqlalchemy import create_engine, make_url

from taskyard import backlog
from taskyard.doctor import Finding, configuration, examine, ok
from taskyard.doctor import database as database_checks
from taskyard.routes import disable, sync_routes
from taskyard.settings import ApiSettings, Route, Settings
from taskyard.workers import LiveWorker, stuck_sentence
from tests.conftest import SERVER_RABBITMQ
from tests.conftest import _answers as answers
from tests.databases import admin_engine, cloned
from tests.ground import PrivatePgBouncer, has_pgbouncer
from tests.servers import REQUIRED
from tests.stack import Stack, until
from tests.system.test_role_logs import free_port

pytestmark = pytest.mark.one_pair
PASSWORD = "hunter2hunter2"


def run(folder: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("TASKYARD_", "DATABASE_URL", "CELERY_", "POSTGRES_"))}
    command = [sys.executable, "-m", "taskyard", "doctor", *options]
    return subprocess.run(command, env={**clean, **env}, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def findings(folder: Path, **env: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and the findings by check."""
    done = run(folder, "--json", **env)
    answer = json.loads(done.stdout)
    assert answer["ok"] == (done.returncode == 0)
    assert all(finding["advice"].endswith(".") for finding in answer["findings"] if finding["state"] != "ok"), "each says what to do"
    assert "Traceback" not in done.stderr
    return done.returncode, {finding["check"]: finding for finding in answer["findings"]}


@pytest.fixture
def stack(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Stack]:
    made = Stack(database_url, broker_url, tmp_path, TASKYARD_WORKER__PROCESSES="1")
    yield made
    made.close()


def settings_of(stack: Stack) -> dict[str, str]:
    return {name: stack.env[name] for name in ("DATABASE_URL", "CELERY_BROKER_URL", "TASKYARD_BROKER__PREFIX", "PYTHONPATH")}


def test_an_installation_that_is_well_has_nothing_to_mend(stack: Stack) -> None:
    stack.start("dispatcher")
    stack.start("worker")
    stack.ready()
    until(lambda: stack.value("SELECT count(*) FROM dispatchers"), 30, "the dispatcher's row")
    code, found = findings(stack.folder, **settings_of(stack))
    assert code == 0
    assert {finding["state"] for check, finding in found.items() if check != "web"} == {"ok"}
    assert {"version", "settings", "plugins", "routes", "database", "encoding", "pooler", "clock", "schema", "rights"} <= found.keys()
    assert {"dispatcher", "workers", "broker", "broker from dispatchers"} <= found.keys()


def test_no_worker_and_no_dispatcher_fail_with_the_command_that_starts_them(stack: Stack) -> None:
    code, found = findings(stack.folder, **settings_of(stack))
    assert code == 1
    assert {check for check, finding in found.items() if finding["state"] == "fail"} == {"workers", "dispatcher"}
    assert "taskyard worker" in found["workers"]["advice"]


def test_what_waits_for_somebody_is_told(stack: Stack) -> None:
    stack.submit("t.echo")
    stack.submit("t.aecho")
    stack.submit("t.echo", queue="parked")
    with stack.engine.begin() as connection:
        backlog.pause(connection, "io", ["io"], 15)
        connection.exec_driver_sql("UPDATE tasks SET next_run_at = now() + interval '30 s' WHERE queue = 'parked'")
        sync_routes(connection, [Route(name="ops", notifier="log", events=("task.failed",))])
        disable(connection, "ops", "410 Gone")
    _, found = findings(stack.folder, **settings_of(stack))
    assert "io (1 wait)" in found["paused queues"]["detail"]
    assert "default (1 wait)" in found["queues without a worker"]["detail"]
    assert found["parked tasks"]["detail"] == "1 of type t.echo in queue parked"
    assert found["routes that are off"]["detail"] == "ops: 410 Gone"


def test_a_database_without_a_schema_is_told_to_upgrade(postgres_url: str, broker_url: str, tmp_path: Path) -> None:
    with cloned(postgres_url) as url:
        code, found = findings(tmp_path, DATABASE_URL=url, CELERY_BROKER_URL=broker_url)
    assert (code, found["schema"]["state"], found["database"]["state"]) == (1, "fail", "ok")
    assert "taskyard db upgrade" in found["schema"]["advice"]
    assert found["broker"]["state"] == "ok", "one fault hides no other part"


def test_servers_that_are_away_are_both_named_and_no_password_is(tmp_path: Path) -> None:
    database, broker = free_port(), free_port()
    env = {"DATABASE_URL": f"postgresql://me:{PASSWORD}@127.0.0.1:{database}/x", "CELERY_BROKER_URL": f"amqp://me:{PASSWORD}@127.0.0.1:{broker}//"}
    code, found = findings(tmp_path, **env)
    assert code == 1
    assert str(database) in found["database"]["detail"]
    assert str(broker) in found["broker"]["detail"]
    table = run(tmp_path, **env)
    assert table.returncode == 1
    assert "2 failed" in table.stdout
    assert PASSWORD not in json.dumps(found) + table.stdout + table.stderr


@pytest.mark.parametrize(("wrong", "part"), [({"database": "nobody_has_this"}, "createdb"), ({"username": "nobody_is_this"}, "createuser")])
def test_a_refused_login_says_what_to_correct(postgres_url: str, tmp_path: Path, wrong: dict[str, str], part: str) -> None:
    url = make_url(postgres_url).set(**wrong).render_as_string(hide_password=False)  # type: ignore[arg-type]  # names of URL's parts
    _, found = findings(tmp_path, DATABASE_URL=url)
    assert part in found["database"]["advice"]
    assert "does not exist" in found["database"]["detail"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ('FATAL: password authentication failed for user "me"', "password"),
        ('FATAL: no pg_hba.conf entry for host "10.0.0.1", user "me", database "x", no encryption', "pg_hba"),
        ("FATAL: unsupported startup parameter: options", "pooler"),
        ("FATAL: sorry, too many clients already", "max_connections"),
        ('FATAL: too many connections for role "me"', "max_connections"),
        ("FATAL: remaining connection slots are reserved for roles with the SUPERUSER attribute", "max_connections"),
        ('FATAL: role "me" is not permitted to log in', "LOGIN"),
        ('FATAL: permission denied for database "x"', "Grant"),
        ("SSL error: certificate verify failed", "sslrootcert"),
        ("server does not support SSL, but SSL was required", "sslmode"),
        ("FATAL: the database system is starting up", "Wait"),
        ("Connection refused", "Start PostgreSQL"),
    ],
)
def test_the_servers_words_have_an_advice(words: str, part: str) -> None:
    assert part in database_checks.advice_for(words)


def test_stuck_workers_are_to_be_restarted_and_not_started() -> None:
    stuck = stuck_sentence([LiveWorker("w1@ops", "ops", 99.0, True), LiveWorker("w2@ops", "ops", 1.0, False)])
    dispatcher, workers = database_checks._roles({"dispatcher": "ok", "workers": stuck or ""}, Settings())
    assert (dispatcher.state, workers.state) == ("ok", "fail")
    assert workers.advice.startswith("Restart")


def test_another_service_at_the_address_is_not_taken_for_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        settings = Settings(api=ApiSettings(port=listening.getsockname()[1]))
        for answer, detail in ((b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404"), (b"220 mail.example.com ESMTP\r\n", "does not speak HTTP")):
            answering = threading.Thread(target=_answer, args=(listening, answer))
            answering.start()
            (found,) = configuration.check_web(settings)
            answering.join()
            assert (found.state, "api.port" in found.advice) == ("fail", True)
            assert detail in found.detail


def _answer(listening: socket.socket, answer: bytes) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(answer)


@pytest.fixture
def pooled(postgres_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The PostgreSQL's URL by way of a PgBouncer of this test's own, with the settings that the test asks for."""
    bouncer = PrivatePgBouncer(postgres_url, **request.param)
    yield bouncer.url
    bouncer.close()


@pytest.mark.skipif(not REQUIRED and not has_pgbouncer(), reason="PgBouncer is not installed here")
@pytest.mark.parametrize(
    ("pooled", "state"),
    [
        ({"pool_mode": "session"}, "ok"),
        ({"pool_mode": "session", "default_pool_size": 1}, "ok"),
        ({"pool_mode": "transaction"}, "fail"),
        ({"pool_mode": "transaction", "server_round_robin": 1}, "fail"),
        ({"pool_mode": "statement"}, "fail"),
    ],
    indirect=["pooled"],
)
def test_a_pooler_is_noticed_and_refused_unless_it_keeps_sessions(pooled: str, state: str, tmp_path: Path) -> None:
    _, found = findings(tmp_path, DATABASE_URL=pooled)
    pooler = found.get("pooler", found["database"])
    assert pooler["state"] == state
    assert ("session" in pooler["advice"]) == (state == "fail")


def test_rights_that_are_missing_are_named_whichever_role_of_taskyard_needs_them(database_url: str, tmp_path: Path) -> None:
    url, role = make_url(database_url), f"reader_{uuid.uuid4().hex[:8]}"
    owner = admin_engine(database_url)
    with owner.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    env = {"DATABASE_URL": url.set(username=role, password=PASSWORD).render_as_string(hide_password=False)}
    try:
        _, found = findings(tmp_path, **env)
        assert "taskyard_alembic_version" in found["rights"]["detail"]
        assert "Grant" in found["rights"]["advice"]
        with owner.connect() as connection:
            connection.exec_driver_sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
            connection.exec_driver_sql(f"REVOKE INSERT ON workers FROM {role}")
        _, found = findings(tmp_path, **env)
        assert (found["rights"]["state"], found["rights"]["detail"]) == ("fail", "the role lacks INSERT on workers")
        assert "workers" in found, "one fault hides no other part"
    finally:
        with owner.connect() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role}")
            connection.exec_driver_sql(f"DROP ROLE {role}")


def test_a_sequence_that_is_behind_and_a_trigger_of_somebody_else_are_named(stack: Stack) -> None:
    stack.submit("t.echo")
    with stack.engine.begin() as connection:
        connection.exec_driver_sql("SELECT setval('events_id_seq', 1)")
        connection.exec_driver_sql("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
        connection.exec_driver_sql("CREATE TRIGGER stamp BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION f()")
        connection.exec_driver_sql(
            "INSERT INTO events (id, task_id, namespace, type, attempt) OVERRIDING SYSTEM VALUE VALUES (7, gen_random_uuid(), '', '', 0)"
        )
    code, found = findings(stack.folder, **settings_of(stack))
    assert (code, found["sequences"]["state"]) == (1, "fail")
    assert found["sequences"]["detail"] == "public.events_id_seq is at 1, and its table at 7"
    assert found["sequences"]["advice"] == "As the owner of the tables, run: SELECT setval('public.events_id_seq', 7)."
    assert (found["others' triggers"]["state"], found["others' triggers"]["detail"]) == ("warn", "trigger stamp on tasks")


def test_nothing_configured_names_both_variables(tmp_path: Path) -> None:
    code, found = findings(tmp_path)
    assert code == 1
    assert "DATABASE_URL" in found["database"]["advice"]
    assert "CELERY_BROKER_URL" in found["broker"]["advice"]


def test_settings_that_can_not_be_read_are_a_finding(tmp_path: Path) -> None:
    code, found = findings(tmp_path, TASKYARD_API__PORTT="1")
    assert code == 1
    assert "TASKYARD_API__PORT" in found["settings"]["detail"]


@pytest.mark.skipif(not REQUIRED and not answers(5672), reason="no RabbitMQ answers here")
def test_rabbitmqs_refusals_are_told_with_the_queue(tmp_path: Path) -> None:
    wrong = make_url(SERVER_RABBITMQ).set(password=PASSWORD).render_as_string(hide_password=False)
    _, found = findings(tmp_path, CELERY_BROKER_URL=wrong)
    assert "ACCESS_REFUSED" in found["broker"]["detail"]
    prefix = f"t{os.urandom(5).hex()}"
    with Connection(SERVER_RABBITMQ) as connection, connection.channel() as channel:
        other = Queue(f"{prefix}.default.sync", durable=True).bind(channel)
        other.queue_declare()
        try:
            _, found = findings(tmp_path, CELERY_BROKER_URL=SERVER_RABBITMQ, TASKYARD_BROKER__PREFIX=prefix)
            assert found["broker queues"]["state"] == "fail"
            assert f"{prefix}.default.sync" in found["broker queues"]["detail"]
            assert found["broker rights"]["state"] == "ok"
        finally:
            other.delete()


def test_a_check_that_hangs_or_raises_hides_no_other(database_url: str) -> None:
    release = threading.Event()

    def hangs() -> Iterator[Finding]:
        yield ok("first", "known")
        release.wait()

    def raises() -> Iterator[Finding]:
        raise KeyError("unforeseen")

    found = examine([("hangs", hangs), ("raises", raises), ("well", lambda: [ok("well", "fine")])], seconds=0.5)
    release.set()
    assert [(finding.check, finding.state) for finding in found] == [("first", "ok"), ("hangs", "fail"), ("raises", "fail"), ("well", "ok")]


def test_clocks_that_differ_are_told(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create_engine(make_url(database_url).set(drivername="postgresql+psycopg"))
    with engine.connect() as connection:
        assert database_checks._clock(connection).state == "ok"
        ahead = time.time() + 30
        monkeypatch.setattr(time, "time", lambda: ahead)
        skewed = database_checks._clock(connection)
    engine.dispose()
    assert (skewed.state, "NTP" in skewed.advice) == ("warn", True)
