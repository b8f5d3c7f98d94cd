"""docker-compose.yml keeps its promises, as far as a machine without Docker can tell."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

from taskyard.settings import Settings, WorkerSettings
from taskyard.stopping import budget

from . import compose

ROOT = Path(__file__).parents[2]
OURS = ("web", "worker", "dispatcher", "flower")


@pytest.fixture
def services() -> dict[str, Any]:
    found: dict[str, Any] = compose.load(compose.example())["services"]
    return found


def _misfits(file: Path) -> str:
    """What the compose specification's schema has against a file. The schema is the one that check-jsonschema ships."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    checked = subprocess.run(command, capture_output=True, text=True)
    return "" if checked.returncode == 0 else checked.stdout + checked.stderr


def test_the_file_fits_the_compose_specification() -> None:
    assert _misfits(compose.FILE) == ""


def test_the_override_that_operators_are_shown_fits_it_too(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```yaml\n(services:.*?)^```$", (ROOT / "docs" / "operators.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "override.yml").write_text(shown)
    assert _misfits(tmp_path / "override.yml") == ""


def test_the_services_are_the_six_of_the_architecture(services: dict[str, Any]) -> None:
    assert sorted(services) == ["db", "dispatcher", "flower", "rabbitmq", "web", "worker"]
    assert services["db"]["image"] == "postgres:16"
    assert services["rabbitmq"]["image"].endswith("-management")


def test_every_variable_is_in_the_example_and_every_one_there_is_used() -> None:
    example = dotenv_values(ROOT / ".env.example", interpolate=False)
    text = compose.FILE.read_text() + "".join(value or "" for value in example.values())
    assert compose.variables(text) == set(example)


def test_without_the_variables_compose_says_what_to_do() -> None:
    with pytest.raises(KeyError, match=r"copy \.env\.example to \.env"):
        compose.load({})


@pytest.mark.parametrize("name", ["POSTGRES_PASSWORD", "FLOWER_BASIC_AUTH"])
def test_a_password_that_was_not_set_is_named(name: str) -> None:
    with pytest.raises(KeyError, match=rf"{name}: copy \.env\.example to \.env and set it there"):
        compose.load(compose.example(**{name: ""}))


def test_the_example_brings_no_password() -> None:
    assert "change-me" not in (ROOT / ".env.example").read_text()


@pytest.mark.parametrize(("service", "name", "program"), [("db", "POSTGRES_PASSWORD", "docker-entrypoint.sh"), ("flower", "FLOWER_BASIC_AUTH", "celery")])
@pytest.mark.parametrize(("value", "starts"), [("change-me", False), ("admin:change-me", False), ("x:admin,y:change-me-too", False), ("a-password", True)])
def test_the_password_of_the_example_of_earlier_versions_is_refused_with_a_sentence(
    tmp_path: Path, services: dict[str, Any], service: str, name: str, program: str, value: str, starts: bool
) -> None:
    stub = tmp_path / program
    stub.write_text('#!/bin/sh\necho "started $*"\n')
    stub.chmod(0o755)
    command = [*services[service].get("entrypoint", []), *services[service]["command"]]
    run = subprocess.run(command, env={"PATH": f"{tmp_path}:/bin:/usr/bin", name: value}, capture_output=True, text=True)
    if starts:
        expected = "postgres" if service == "db" else "-A taskyard_worker flower"
        assert (run.returncode, run.stdout) == (0, f"started {expected}\n")
    else:
        assert (run.returncode, run.stdout) == (1, "")
        assert run.stderr.startswith(f"{name} in .env ")
        assert "openssl rand" in run.stderr


def test_no_service_can_gain_rights_or_write_outside_its_volumes_and_memory(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert any(mount.partition(":")[0] == "/tmp" for mount in service["tmpfs"]), f"{name}: programs expect a /tmp that they can write to"  # in a container
        assert not service.get("privileged")
        assert "cap_add" not in service


def test_every_service_has_a_limit_of_memory_and_of_processes(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert 128 <= compose.mebibytes(service["mem_limit"]) <= 4096, name
        assert 64 <= service["pids_limit"] <= 4096, name
    assert services["worker"]["pids_limit"] > services["web"]["pids_limit"], "handlers run in processes of the worker's container"


def test_every_service_has_a_health_check_and_comes_back(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["restart"] == "unless-stopped"


def test_start_order_follows_health(services: dict[str, Any]) -> None:
    needs = {name: {other: how["condition"] for other, how in service.get("depends_on", {}).items()} for name, service in services.items()}
    assert needs["web"] == {"db": "service_healthy"}
    assert needs["worker"] == needs["dispatcher"] == {"web": "service_healthy", "rabbitmq": "service_healthy"}
    assert needs["flower"] == {"rabbitmq": "service_healthy"}


def test_ports_are_published_on_loopback_only(services: dict[str, Any]) -> None:
    assert {name: service.get("ports", []) for name, service in services.items() if service.get("ports")} == {
        "web": ["127.0.0.1:8000:8000"],
        "flower": ["127.0.0.1:5555:5555"],
    }


@pytest.mark.parametrize("role", ["web", "dispatcher", "worker"])
def test_each_role_gets_longer_to_stop_than_its_budget(services: dict[str, Any], role: str) -> None:
    grace = float(services["worker"]["environment"]["TASKYARD_WORKER__STOP_GRACE"])
    needs = budget(role, Settings(worker=WorkerSettings(stop_grace=grace)))
    assert compose.seconds(services[role]["stop_grace_period"]) > needs
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read(ROOT / "deploy" / "systemd" / f"taskyard-{role}.service")
    assert float(unit["Service"]["TimeoutStopSec"]) > budget(role, Settings())
    assert unit["Service"]["ExecStart"].split()[1] == {"web": "serve"}.get(role, role)


def test_the_budgets_and_graces_of_the_manual_are_those_of_the_code_and_the_deployments(services: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "operators.md").read_text()
    for role in ("web", "dispatcher", "worker"):
        row = next(line for line in page.splitlines() if line.startswith(f"| {role} |") and "`" in line and line.count("|") == 5)
        assert float(row.split("|")[4]) == budget(role, Settings())
    graces = next(line for line in page.splitlines() if line.startswith("| Docker Compose |"))
    assert [cell.strip(" `") for cell in graces.split("|")[3:6]] == [services[role]["stop_grace_period"] for role in ("web", "dispatcher", "worker")]


def test_our_services_share_one_image_and_few_rights(services: dict[str, Any]) -> None:
    assert {services[name]["image"] for name in OURS} == {"taskyard:0.1.0"}
    for name in OURS:
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["environment"]["TASKYARD_LOG__FORMAT"] == "json"


def test_data_outlives_its_containers(services: dict[str, Any]) -> None:
    assert "db:/var/lib/postgresql/data" in services["db"]["volumes"]
    assert "rabbitmq:/var/lib/rabbitmq" in services["rabbitmq"]["volumes"]
    assert services["rabbitmq"]["hostname"]


def test_rabbitmq_waits_longer_for_a_consumer_than_a_task_may_run(services: dict[str, Any]) -> None:
    mounted = next(volume.split(":")[0] for volume in services["rabbitmq"]["volumes"] if volume.startswith("./"))
    lines = [line.split(" = ") for line in (ROOT / mounted).read_text().splitlines() if line and not line.startswith("#")]
    longest_timeout_in_days = 30
    assert int(dict(lines)["consumer_timeout"]) > longest_timeout_in_days * 86400 * 1000


@pytest.mark.parametrize("name", OURS)
def test_a_command_names_a_program_that_is_installed(services: dict[str, Any], name: str) -> None:
    program = services[name]["command"][0]
    assert shutil.which(program, path=f"{Path(sys.executable).parent}:/bin:/usr/bin")
