"""The notifier configurations that the operators' guide and the plugins' pages show are taken by `taskyard config check`, all together."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .markdown import ROOT, blocks

SECRETS = {
    **dict.fromkeys(("HOOK_SECRET", "OLD_HOOK_SECRET", "NEW_SECRET", "OLD_SECRET"), "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()),
    "SMTP_PASSWORD": "right-horse",
    "TEAM_CHAT_URL": "json://user:right-horse@chat.example.com/token",
}


@pytest.mark.parametrize("page", ["docs/operators.md", *(f"plugins/{name}/README.md" for name in ("apprise", "email", "log", "webhook"))])
def test_the_routes_that_a_page_shows_are_taken(tmp_path: Path, page: str) -> None:
    shown = [block for block in blocks(ROOT / page, "toml") if "[[routes]]" in block]
    assert shown
    (tmp_path / "taskyard.toml").write_text("\n".join(shown))
    (tmp_path / "smtp-password").write_text("right-horse\n")
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | SECRETS
    run = subprocess.run([sys.executable, "-m", "taskyard", "config", "check"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("The configuration is fine.\n", "")
