"""Every role reaches a database and a broker whose certificates are of one's own authority, and none that is not who it says."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import make_url

from taskyard.database import connect
from taskyard.database_check import check_database
from taskyard.database_errors import driver_words
from taskyard.dispatch.app import create_celery
from taskyard.dispatch.broker_tls import check_certificate
from taskyard.errors import ConfigurationError
from taskyard.settings import BrokerSettings, DatabaseSettings, Settings
from taskyard_api.connecting import Connector
from tests.databases import cloned
from tests.stack import Stack, until
from tests.tls import Authority, TlsFront

pytestmark = pytest.mark.one_pair
Front = Callable[..., TlsFront]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def front() -> Iterator[Front]:
    """Makes TLS fronts, and ends them."""
    made: list[TlsFront] = []

    def make(url: str, authority: Authority, name: str = "localhost", *, clients: bool = False) -> TlsFront:
        made.append(TlsFront(url, authority.server(name, clients=clients)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def secured(url: str, port: int, **parameters: str) -> str:
    """A database's URL by way of a TLS front."""
    plain = make_url(url)
    return plain.set(host="localhost", port=port, query=parameters).render_as_string(hide_password=False)


def taskyard(folder: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "DATABASE_URL": url}
    return subprocess.run([sys.executable, "-m", "taskyard", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=100)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_every_role_works_with_certificates_of_an_authority_of_ones_own(
    postgres_url: str, broker_url: str, authority: Authority, front: Front, tmp_path: Path
) -> None:
    with cloned(postgres_url) as plain:
        certificate, key = authority.client("taskyard")
        to_postgres = front(plain, authority, clients=True)
        url = secured(plain, to_postgres.port, sslmode="verify-full", sslrootcert=str(authority.ca_file), sslcert=str(certificate), sslkey=str(key))
        migrated = taskyard(tmp_path, url, "db", "upgrade")
        assert migrated.returncode == 0, migrated.stderr
        made = taskyard(tmp_path, url, "keys", "create", "ci", "--scopes", "tasks:read")
        assert made.returncode == 0, made.stderr
        port = free_port()
        stack = Stack(plain, broker_url, tmp_path, TASKYARD_API__PORT=str(port), TASKYARD_WORKER__PROCESSES="1")
        stack.env["DATABASE_URL"] = url
        if broker_url.startswith("amqp:"):
            rest = broker_url.partition("//")[2].rpartition("@")
            stack.env["CELERY_BROKER_URL"] = f"amqps://{rest[0]}@localhost:{front(broker_url, authority).port}//"
            stack.env["TASKYARD_BROKER__CA_FILE"] = str(authority.ca_file)
        try:
            for role in ("dispatcher", "worker", "serve"):
                stack.start(role)
            stack.ready()
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                until(lambda: _is_ready(client), 60, "the web process")
                answer = client.post("/api/v1/tasks", json={"type": "t.echo", "payload": {"word": "x"}})
                assert answer.status_code == 201, answer.text
                task = f"/api/v1/tasks/{answer.json()['id']}"
                until(lambda: client.get(task).json()["status"] == "succeeded", 60, "success")
        finally:
            stack.env["CELERY_BROKER_URL"] = broker_url
            stack.close()


def _is_ready(client: httpx2.Client) -> bool:
    try:
        return client.get("/health/ready").is_success
    except httpx2.TransportError:
        return False


@pytest.mark.parametrize("wrong", ["name", "authority"])
def test_no_driver_talks_to_a_database_that_is_not_who_it_says(postgres_url: str, authority: Authority, front: Front, tmp_path: Path, wrong: str) -> None:
    others = tmp_path / "others"
    others.mkdir()
    signed_by = authority if wrong == "name" else Authority(others)
    to_postgres = front(postgres_url, signed_by, "elsewhere.example" if wrong == "name" else "localhost")
    url = secured(postgres_url, to_postgres.port, sslmode="verify-full", sslrootcert=str(authority.ca_file))
    settings = DatabaseSettings(url=SecretStr(url))
    with pytest.raises(psycopg.OperationalError, match="certificate"):
        connect(settings, role="test")
    with pytest.raises(OSError, match="certificate") as refused:
        asyncio.run(Connector(settings).connect("test"))
    assert "certificate" in driver_words(refused.value)
    refused_upgrade = taskyard(tmp_path, url, "db", "upgrade")
    assert refused_upgrade.returncode == 1
    assert "certificate" in refused_upgrade.stderr
    assert "Traceback" not in refused_upgrade.stderr


def test_a_certificate_that_is_none_stops_every_role_at_its_start(authority: Authority, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("nothing\n")
    junk.chmod(0o600)
    for query, named in ((f"sslrootcert={junk}", "sslrootcert"), (f"sslcert={junk}&sslkey={junk}", "sslcert")):
        settings = DatabaseSettings(url=SecretStr(f"postgresql://u@localhost/d?sslmode=require&{query}"))
        for starts in (check_database, Connector):
            with pytest.raises(ConfigurationError, match=rf"^database\.url: {named}: .*junk\.pem: expected"):
                starts(settings)


# --- the broker ---


def broker(url: str, ca_file: Path | None) -> Settings:
    return Settings(broker=BrokerSettings(url=SecretStr(url), ca_file=ca_file))


@pytest.mark.parametrize(
    ("name", "trusted", "said"),
    [("localhost", True, None), ("elsewhere.example", True, "Hostname mismatch"), ("localhost", False, "broker.ca_file")],
    ids=["right", "wrong name", "unknown authority"],
)
def test_a_broker_whose_certificate_is_wrong_is_refused_with_a_sentence(authority: Authority, front: Front, name: str, trusted: bool, said: str | None) -> None:
    to_nowhere = front("amqp://127.0.0.1:9//", authority, name)
    settings = broker(f"amqps://guest:s3cret@localhost:{to_nowhere.port}//", authority.ca_file if trusted else None)
    if said is None:
        check_certificate(settings.broker, settings.broker.url.get_secret_value() if settings.broker.url else "")
        return
    with pytest.raises(ConfigurationError, match=r"^broker\.url: the certificate of localhost:\d+ is refused: ") as refused:
        check_certificate(settings.broker, settings.broker.url.get_secret_value() if settings.broker.url else "")
    assert said in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_the_broker_client_checks_the_name_itself(authority: Authority, front: Front) -> None:
    to_nowhere = front("amqp://127.0.0.1:9//", authority, "elsewhere.example")
    app = create_celery(broker(f"amqps://guest:guest@localhost:{to_nowhere.port}//", authority.ca_file))
    with app.connection_for_write() as connection, pytest.raises(OSError, match="Hostname mismatch"):
        connection.connect()


def test_a_role_is_refused_by_a_wrong_certificate_at_its_start(authority: Authority, front: Front, tmp_path: Path) -> None:
    to_nowhere = front("amqp://127.0.0.1:9//", authority, "elsewhere.example")
    for role in ("dispatcher", "worker"):
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "DATABASE_URL": "postgresql://u@127.0.0.1:9/d",
            "CELERY_BROKER_URL": f"amqps://guest:guest@localhost:{to_nowhere.port}//",
            "TASKYARD_BROKER__CA_FILE": str(authority.ca_file),
        }
        run = subprocess.run([sys.executable, "-m", "taskyard", role], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
        assert run.returncode == 1, role
        assert "Hostname mismatch" in run.stderr
        assert "Traceback" not in run.stderr


@pytest.mark.parametrize(("url", "said"), [("amqp://localhost//", "expected amqps"), ("amqps://localhost//", "expected certificates in PEM")])
def test_a_ca_file_that_serves_no_purpose_or_is_none_is_refused(tmp_path: Path, url: str, said: str) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("nothing\n")
    with pytest.raises(ConfigurationError, match=said):
        create_celery(broker(url, junk))
