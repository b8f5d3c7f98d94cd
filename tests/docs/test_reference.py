"""The reference pages say what the code does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from taskyard.modelinfo import keys_of
from taskyard.settings import Settings

ROOT = Path(__file__).parents[2]


def test_pages_made_from_the_code_are_up_to_date() -> None:
    checked = subprocess.run([sys.executable, Path(__file__).with_name("render.py"), "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_setting_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    missing = [".".join(key) for key in keys_of(Settings) if len(key) == 2 and f"| `{'.'.join(key)}` |" not in page]
    assert missing == []
