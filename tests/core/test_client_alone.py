"""The client needs little: none of the service's parts."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"alembic", "asyncpg", "celery", "fastapi", "kombu", "psycopg", "sqlalchemy", "starlette", "uvicorn"}


@pytest.mark.parametrize("module", ["taskyard.client", "taskyard", "taskyard.cli", "taskyard.cli.submit", "taskyard.cli.tasks", "taskyard.testing"])
def test_what_needs_no_service_loads_none_of_its_parts(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "pydantic" in run.stdout.split()
    assert set(run.stdout.split()) & HEAVY == set()
