"""A Python of a newcomer's own: it sees what the tests' Python has installed, and what is installed into it stays its own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

READ_BY_TASKYARD = ("TASKYARD_", "DATABASE_URL", "CELERY_", "POSTGRES_", "PYTHONPATH")
COMMANDS = {"taskyard": "taskyard.cli:main", "pip": "pip._internal.cli.main:main"}


class Newcomer:
    """A virtual environment, and a folder to work in. Nothing is fetched from an index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        self.bin = folder / "venv" / "bin"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
        ours = sysconfig.get_path("purelib")
        (own,) = (folder / "venv" / "lib").glob("python*/site-packages")
        # By addsitedir, so that the editable installs there are found too.
        (own / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
        for name, target in COMMANDS.items():
            module, _, function = target.partition(":")
            code = f"from {module} import {function}\nraise SystemExit({function}())"
            script = self.bin / name
            script.write_text(f"#!{self.bin / 'python'}\n{code}\n")
            script.chmod(0o755)
        # A program of its own, which is found beside the Python that it was installed for.
        (self.bin / "ruff").symlink_to(Path(sysconfig.get_path("scripts")) / "ruff")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(READ_BY_TASKYARD)}
        pip = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_QUIET": "1"}
        self.environment = {**kept, **pip, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}

    def shell(self, commands: str, **environment: str) -> str:
        """Run shell commands as a person types them; answers what they wrote."""
        run = subprocess.run(
            ["bash", "-e", "-c", commands], cwd=self.folder, env=self.environment | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert run.returncode == 0, f"{commands}\nended with {run.returncode}:\n{run.stdout}"
        return run.stdout
