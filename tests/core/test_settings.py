"""Settings: where they come from, which source wins, and what a mistake is told."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest
from sqlalchemy import make_url

from taskyard.errors import ConfigurationError
from taskyard.settings import Settings, load_settings, load_with_places


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and an environment without settings."""
    for name in os.environ:
        if name.startswith(("TASKYARD_", "POSTGRES_", "CELERY_")) or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "taskyard.toml") -> Path:
    path = Path(name)
    path.write_text(textwrap.dedent(text))
    return path


def problems() -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    return str(caught.value)


def database_of(settings: Settings) -> str:
    assert settings.database.url is not None
    return settings.database.url.get_secret_value()


def test_with_no_source_at_all_the_defaults_hold() -> None:
    assert load_settings() == Settings()


def test_stronger_sources_win(monkeypatch: pytest.MonkeyPatch) -> None:
    write("[api]\nport = 1\n[log]\nlevel = 'debug'\n[dispatch]\nwindow = 1\n[worker]\nprocesses = 1")
    write("TASKYARD_API__PORT=2\nTASKYARD_DISPATCH__WINDOW=2\nTASKYARD_WORKER__PROCESSES=2", ".env")
    monkeypatch.setenv("TASKYARD_API__PORT", "3")
    monkeypatch.setenv("TASKYARD_DISPATCH__WINDOW", "3")
    loaded = load_with_places(api={"port": 4, "host": None})
    settings = loaded.settings
    assert (settings.api.port, settings.dispatch.window, settings.worker.processes, settings.log.level) == (4, 3, 2, "debug")
    assert settings.api.host == "127.0.0.1"
    assert loaded.places[("dispatch", "window")] == "environment: TASKYARD_DISPATCH__WINDOW"
    assert loaded.places[("worker", "processes")] == ".env, line 3: TASKYARD_WORKER__PROCESSES"
    assert loaded.places[("log", "level")] == "taskyard.toml, line 4: log.level"


def test_the_file_is_the_argument_else_what_taskyard_config_names(monkeypatch: pytest.MonkeyPatch) -> None:
    write("[api]\nport = 1")
    monkeypatch.setenv("TASKYARD_CONFIG", str(write("[api]\nport = 2", "other.toml")))
    assert load_settings().api.port == 2
    assert load_settings(write("[api]\nport = 3", "third.toml")).api.port == 3


def test_a_named_file_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKYARD_CONFIG", "nowhere.toml")
    assert problems() == "nowhere.toml: no such file (named by TASKYARD_CONFIG)"
    with pytest.raises(ConfigurationError, match="given as the configuration"):
        load_settings(Path("nowhere.toml"))


def test_common_names_are_accepted_and_taskyard_names_are_stronger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://a/1")
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://b//")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "rpc://")
    settings = load_settings()
    assert database_of(settings) == "postgresql://a/1"
    assert settings.broker.url is not None
    assert (settings.broker.url.get_secret_value(), settings.broker.result_backend) == ("amqp://b//", "rpc://")
    monkeypatch.setenv("TASKYARD_DATABASE__URL", "postgresql://a/2")
    assert database_of(load_settings()) == "postgresql://a/2"


def test_a_url_is_made_of_postgres_parts_and_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    write("POSTGRES_PASSWORD='p@ss/w:rd %'\nPOSTGRES_USER=me\nPOSTGRES_DB=jobs", ".env")
    monkeypatch.setenv("POSTGRES_HOST", "db")
    url = make_url(database_of(load_settings()))
    assert (url.username, url.password, url.host, url.port, url.database) == ("me", "p@ss/w:rd %", "db", 5432, "jobs")
    monkeypatch.setenv("DATABASE_URL", "postgresql://whole")
    assert database_of(load_settings()) == "postgresql://whole"


def test_postgres_user_and_password_alone_make_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_USER", "me")
    monkeypatch.setenv("POSTGRES_PASSWORD", "x")
    assert load_settings().database.url is None


def test_a_port_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_HOST", "db")
    monkeypatch.setenv("POSTGRES_PORT", "x")
    assert problems() == "POSTGRES_PORT: expected a number"


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    write("[database]\nurl = 'postgresql://file'")
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("TASKYARD_API__PORT", "")
    assert database_of(load_settings()) == "postgresql://file"
    assert load_settings().api.port == 8000


def test_references_in_the_file_stand_for_variables_and_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "etc").mkdir()
    write("s3cret\n\n", "etc/secret")
    config = write(
        """
        [database]
        url = "postgresql://me:${env:DB_PASSWORD}@${env:DB_HOST}/jobs"
        [[routes]]
        name = "x"
        notifier = "webhook"
        events = ["task.failed"]
        options = { secret = "${file:secret}", list = ["a", "${env:DB_HOST}"] }
        """,
        "etc/taskyard.toml",
    )
    write("DB_HOST=h", ".env")
    monkeypatch.setenv("DB_PASSWORD", "p")
    settings = load_settings(config)
    assert database_of(settings) == "postgresql://me:p@h/jobs"
    assert settings.routes[0].options == {"secret": "s3cret\n", "list": ["a", "h"]}


def test_a_reference_to_nothing_names_the_setting_and_the_line() -> None:
    write('[database]\nurl = "${env:MISSING}"\n[api]\nhost = "${file:missing}"')
    assert problems().splitlines() == [
        "taskyard.toml, line 2: database.url: the environment variable MISSING is not set",
        "taskyard.toml, line 4: api.host: can't read missing: no such file or directory",
    ]


def test_a_reference_that_a_stronger_source_overrides_may_point_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    write('[database]\nurl = "${env:MISSING}"')
    monkeypatch.setenv("TASKYARD_DATABASE__URL", "postgresql://x")
    assert database_of(load_settings()) == "postgresql://x"


def test_unknown_names_are_told_with_their_place_and_the_nearest_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    write('[databse]\nurl = "x"\n\n[api]\nprt = 1\n\n[[routes]]\nname = "a"\nnotifer = "log"\nevents = ["task.failed"]')
    write("\nA=1\n\nTASKYARD_LOG_LEVEL=info", ".env")
    monkeypatch.setenv("TASKYARD_BROKR__URL", "x")
    told = problems().splitlines()
    assert "taskyard.toml, line 1: databse: no such setting. Did you mean 'database'?" in told
    assert "taskyard.toml, line 5: api.prt: no such setting. Did you mean 'port'?" in told
    assert "taskyard.toml, line 9: routes.0.notifer: no such setting. Did you mean 'notifier'?" in told
    assert ".env, line 4: TASKYARD_LOG_LEVEL: no such setting. Did you mean 'TASKYARD_LOG__LEVEL'?" in told
    assert "environment: TASKYARD_BROKR__URL: no such setting. Did you mean 'TASKYARD_BROKER__URL'?" in told


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TASKYARD_URL", "x"),
        ("TASKYARD_TASK_ID", "x"),
        ("TASKYARD_TEST_SERVERS", "x"),
        ("TASKYARD_SERVICE_HOST", "10.0.0.1"),
        ("TASKYARD_WEB_PORT_8000_TCP_ADDR", "x"),
        ("TASKYARD_PORT", "tcp://10.0.0.1:80"),
    ],
)
def test_variables_of_clients_tests_and_kubernetes_are_passed_over(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert load_settings() == Settings()


@pytest.mark.parametrize("text", ["a,b", " a , b,", '["a", "b"]'])
def test_a_list_in_a_variable_is_json_or_comma_separated(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKYARD_WORKER__QUEUES", text)
    assert load_settings().worker.queues == ("a", "b")


def test_routes_can_come_from_a_variable_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKYARD_ROUTES", '[{"name": "a", "notifier": "log", "events": ["task.failed"]}]')
    assert load_settings().routes[0].notifier == "log"
    monkeypatch.setenv("TASKYARD_ROUTES", "[{")
    assert "environment: TASKYARD_ROUTES: not valid JSON" in problems()


def test_a_plugin_s_options_come_from_file_and_environment_together(monkeypatch: pytest.MonkeyPatch) -> None:
    write('[plugins]\ndisabled = ["x"]\n[plugins.http]\nlimit = 1\nother = { a = 1 }\n[plugins.my-plugin]\nname = "n"')
    monkeypatch.setenv("TASKYARD_PLUGINS__HTTP__ALLOW_PRIVATE_NETWORKS", "true")
    monkeypatch.setenv("TASKYARD_PLUGINS__HTTP__OTHER__B", "2")
    monkeypatch.setenv("TASKYARD_PLUGINS__MY_PLUGIN__SIZES", "[1, 2]")
    monkeypatch.setenv("TASKYARD_PLUGINS__ONLY", "http,my-plugin")
    chosen = load_settings().plugins
    assert chosen.options["http"] == {"limit": 1, "allow_private_networks": "true", "other": {"a": 1, "b": "2"}}
    assert chosen.options["my-plugin"] == {"name": "n", "sizes": [1, 2]}
    assert (chosen.only, chosen.disabled) == (("http", "my-plugin"), ("x",))


def test_a_value_where_a_table_belongs_is_told() -> None:
    write("database = 3\n[plugins]\nhttp = true\nonli = ['a']")
    told = problems().splitlines()
    assert "taskyard.toml: database: expected a table, [database]" in told
    assert "taskyard.toml: plugins.http: expected a table, [plugins.http]." in told
    assert "taskyard.toml: plugins.onli: expected a table, [plugins.onli]. Did you mean 'only'?" in told


def test_a_wrong_value_is_told_with_its_place_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    write("[api]\nport = 'hunter2'")
    monkeypatch.setenv("TASKYARD_WORKER__PROCESSES", "hunter2")
    told = problems()
    assert "taskyard.toml, line 2: api.port: input should be a valid integer" in told
    assert "environment: TASKYARD_WORKER__PROCESSES: input should be a valid integer" in told
    assert "hunter2" not in told


def test_wrong_values_are_told_in_plain_words(folder: Path) -> None:
    (folder / "taskyard.toml").write_text("[worker]\nqueues = 'default'\n[plugins]\nonly = 5\n")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert str(caught.value).splitlines() == [
        f"taskyard.toml, line {line}: {key}: expected a list" for line, key in ((2, "worker.queues"), (4, "plugins.only"))
    ]


def test_a_file_that_can_not_be_parsed_is_told_with_the_line(folder: Path) -> None:
    write("[api]\nport = \nhost = 1")
    assert problems().startswith("taskyard.toml: not valid TOML: Invalid value (at line 2")
    (folder / "taskyard.toml").write_bytes(b"a = '\xff'")
    assert problems() == "taskyard.toml: expected text in UTF-8; byte 5 is not"
    (folder / "taskyard.toml").unlink()
    write("A=1\nthis is no assignment", ".env")
    assert problems() == ".env, line 2: expected NAME=value"


def test_settings_show_no_secret_in_their_repr() -> None:
    route = {"name": "a", "notifier": "log", "events": ["task.failed"], "options": {"secret": "hunter2"}}
    settings = load_settings(database={"url": "postgresql://u:hunter2@h"}, broker={"result_backend": "redis://:hunter2@h"}, routes=[route])
    assert "hunter2" not in repr(settings)
