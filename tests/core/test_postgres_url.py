"""One URL, one meaning: what DATABASE_URL says holds for both drivers, or is refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from taskyard.database import database_url, libpq_arguments
from taskyard.errors import ConfigurationError
from taskyard.postgres_url import read_url
from taskyard.settings import DatabaseSettings, load_settings


def arguments(url: str, **environment: str) -> dict[str, str]:
    """libpq's keywords for a URL."""
    return read_url(url, environment).libpq()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@h/d", {"host": "h", "port": "5432", "user": "u", "password": "p", "dbname": "d"}),
        ("postgres://u@h:5433/d", {"host": "h", "port": "5433", "user": "u"}),
        ("postgresql+asyncpg://u%40x:a%2Fb%25@h/d%20e", {"user": "u@x", "password": "a/b%", "dbname": "d e"}),
        ("postgresql+psycopg://u:a/b?c#d@h/d", {"user": "u", "password": "a/b?c#d", "host": "h", "dbname": "d"}),
        ("postgresql://u:p+q@h/d", {"password": "p+q"}),
        ("postgresql://u@[::1]:5433/d", {"host": "::1", "port": "5433"}),
        ("postgresql://u@h1,h2:5433,[::1]/d", {"host": "h1,h2,::1", "port": "5432,5433,5432", "target_session_attrs": "read-write"}),
        ("postgresql://u@h1,h2/d?port=5433", {"host": "h1,h2", "port": "5433,5433"}),
        ("postgresql://u@/d?host=h1:5433&host=h2", {"host": "h1,h2", "port": "5433,5432"}),
        ("postgresql://u@h1,h2/d?target_session_attrs=any", {"target_session_attrs": "any"}),
        ("postgresql://u@%2Frun%2Fpg/d", {"host": "/run/pg", "port": "5432"}),
        ("postgresql:///d?host=/run/pg&user=u&password=p&port=5433", {"host": "/run/pg", "port": "5433", "user": "u", "password": "p", "dbname": "d"}),
        ("postgresql://u@h", {"dbname": "u"}),
        ("postgresql://u@h/d?ssl=true", {"sslmode": "require"}),
        (f"postgresql://u@h/d?ssl=verify-ca&sslrootcert={__file__}", {"sslmode": "verify-ca"}),
        ("postgresql://u@h/d?sslrootcert=system", {"sslrootcert": "system", "sslmode": "verify-full"}),
        ("postgresql://u@h/d?options=-csearch_path%3Dapp", {"options": "-csearch_path=app"}),
        ("postgresql://u@h/d?options=-c+search_path%3Dapp", {"options": "-c search_path=app"}),
        ("postgresql://h/d?options=a@b", {"host": "h", "options": "a@b"}),
        ("postgresql://u:p@h/d\n", {"host": "h", "dbname": "d"}),
    ],
)
def test_each_form_of_a_url_is_read_as_libpq_and_sqlalchemy_read_it(url: str, expected: dict[str, str]) -> None:
    found = arguments(url)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("channel_binding=require", "channel_binding=prefer"),
        ("gssencmode=require", "gssencmode=prefer"),
        ("require_auth=scram-sha-256", "require_auth=scram-sha-256"),
        ("requirepeer=postgres", "requirepeer"),
        ("load_balance_hosts=random", "load_balance_hosts=disable"),
        ("sslcrldir=/etc", "sslcrldir"),
        ("replication=database", "replication"),
        ("client_encoding=LATIN1", "client_encoding=utf8"),
        ("target_session_attrs=prefer-standby", "Taskyard has to write"),
        ("sslmode=verify_full", "Did you mean 'verify-full'?"),
        ("sslmod=require", "Did you mean 'sslmode'?"),
        ("prepared_statement_cache_size=0", "no parameter"),
        ("sslrootcert=/nowhere/ca.pem", "/nowhere/ca.pem: no such file"),
        ("sslrootcert=system&sslmode=require", "verify-full"),
        ("connect_timeout=soon", "whole number"),
        ("keepalives_idle=32768", "from 0 to 32767"),
        ("ssl_min_protocol_version=1.2", "TLSv1.2"),
        ("ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2", "ssl_max_protocol_version"),
        ("sslnegotiation=directly", "Did you mean 'direct'?"),
        ("sslnegotiation=direct", "sslmode=require"),
        ("sslmode=verify-full", "sslrootcert=FILE"),
        ("gsslib=mit", "gssapi"),
        ("hostaddr=localhost", "IP addresses"),
        ("currentSchema=app", "options=-csearch_path%3DNAME"),
        ("SSLMODE=require", "Did you mean 'sslmode'?"),
        ("password=a%00b", "null character"),
        ("hostaddr=127.0.0.1&sslmode=verify-full", "hostaddr"),
        ("hostaddr=127.0.0.1,127.0.0.2", "as many addresses"),
        ("service=nobodys", "no such service"),
        ("sslmode", "name=value"),
    ],
)
def test_what_only_one_driver_can_do_is_refused_with_a_sentence_that_names_it(query: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"^database\.url: ") as refused:
        read_url(f"postgresql://u:s3cret@h/d?{query}", {})
    assert named in str(refused.value)
    assert query.partition("=")[0] in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["", "postgresql", "postgresql://h:x/d", "postgresql://h:99999/d", "postgresql://[::1/d", "postgresql://u@h1,h2/d?port=1,2,3", "mysql://h/d"]
)
def test_what_is_no_url_of_postgresql_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^database\.url: "):
        read_url(url, {})


def test_an_at_sign_in_a_password_is_refused_with_its_encoding_and_none_of_it_is_shown() -> None:
    with pytest.raises(ConfigurationError, match="%40") as refused:
        read_url("postgresql://u:s3c@ret@h/d", {})
    assert "ret" not in str(refused.value)


def test_a_key_that_others_can_read_is_refused_for_both_drivers_as_libpq_refuses_it(tmp_path: Path) -> None:
    key = tmp_path / "client.key"
    key.touch(0o600)
    assert arguments(f"postgresql://u@h/d?sslkey={key}")["sslkey"] == str(key)
    key.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        read_url(f"postgresql://u@h/d?sslkey={key}", {})


@pytest.mark.parametrize(
    "query", ["channel_binding=prefer", "gssencmode=disable", "sslsni=1", "replication=false", "client_encoding=utf8", "application_name=x"]
)
def test_a_parameter_by_which_nothing_is_lost_is_taken(query: str) -> None:
    assert arguments(f"postgresql://u@h/d?{query}") == arguments("postgresql://u@h/d")


def test_variables_of_libpq_hold_for_both_drivers_and_the_url_is_stronger() -> None:
    variables = {"PGHOST": "h1,h2", "PGPORT": "5433", "PGUSER": "u", "PGPASSWORD": "p", "PGDATABASE": "d", "PGSSLMODE": "require"}
    found = arguments("postgresql://", **variables)
    assert (found["host"], found["port"], found["user"], found["password"], found["dbname"]) == ("h1,h2", "5433,5433", "u", "p", "d")
    assert found["sslmode"] == "require"
    assert arguments("postgresql://x@y/z?sslmode=disable", **variables)["sslmode"] == "disable"
    with pytest.raises(ConfigurationError, match="PGCHANNELBINDING"):
        arguments("postgresql://u@h/d", PGCHANNELBINDING="require")
    assert "client_encoding" not in arguments("postgresql://u@h/d", PGCLIENTENCODING="LATIN1")
    assert arguments("postgresql://u@h/d", PGOPTIONS="-csearch_path=app")["options"] == "-csearch_path=app"
    assert arguments("postgresql://u@h/d", PGREQUIRESSL="1")["sslmode"] == "require"
    assert arguments("postgresql://u@%2Frun%2Fpg/d", PGSSLMODE="verify-full")["host"] == "/run/pg", "a socket has no certificate"


def test_a_service_file_is_read_for_both_drivers(tmp_path: Path) -> None:
    file = tmp_path / "services"
    file.write_text("# ours\n[tasks]\nhost=h\nport=5433\nuser=u\nsslmode=require\n")
    found = arguments("postgresql:///d?service=tasks", PGSERVICEFILE=str(file))
    assert {name: found[name] for name in ("host", "port", "user", "dbname", "sslmode")} == {
        "host": "h",
        "port": "5433",
        "user": "u",
        "dbname": "d",
        "sslmode": "require",
    }


def test_a_url_without_a_host_means_this_machine() -> None:
    host = arguments("postgresql://u@/d")["host"]
    assert host == "localhost" or Path(host, ".s.PGSQL.5432").exists()


def test_numeric_addresses_are_for_libpq_beside_the_name_and_for_asyncpg_instead_of_it() -> None:
    read = read_url("postgresql://u@h1,h2/d?hostaddr=127.0.0.1,127.0.0.2", {})
    assert (read.libpq()["host"], read.libpq()["hostaddr"]) == ("h1,h2", "127.0.0.1,127.0.0.2")
    assert read.addresses == (("127.0.0.1", 5432), ("127.0.0.2", 5432))


@pytest.mark.parametrize("host", ["/run/postgresql", "h1,h2", "::1", "h"])
def test_the_parts_of_a_url_in_variables_may_name_a_folder_of_sockets_or_several_hosts(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    for name, value in {"HOST": host, "DB": "d", "USER": "u", "PASSWORD": "a/b@c", "PORT": "5433"}.items():
        monkeypatch.setenv(f"POSTGRES_{name}", value)
    found = libpq_arguments(load_settings().database, role="test")
    assert (found["host"], found["user"], found["password"], found["dbname"]) == (host, "u", "a/b@c", "d")
    assert set(found["port"].split(",")) == {"5433"}


def test_a_role_names_its_connections_and_says_how_long_one_may_take() -> None:
    url = "postgresql://u@h/d?connect_timeout=7&application_name=x&keepalives_idle=60"
    found = libpq_arguments(DatabaseSettings(url=SecretStr(url)), role="worker")
    assert (found["connect_timeout"], found["application_name"], found["keepalives_idle"], found["keepalives_count"]) == ("7", "taskyard-worker", "60", "3")


def test_the_url_that_messages_show_has_no_password() -> None:
    assert "s3cret" not in str(database_url(DatabaseSettings(url=SecretStr("postgresql://u:s3cret@h1,h2/d"))))
