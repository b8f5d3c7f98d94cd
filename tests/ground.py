"""Ground of one's own, for faults: a PostgreSQL and a broker that nobody else uses, to be killed, frozen and started again.

Their URLs stay the same over restarts, and so do PostgreSQL's and RabbitMQ's data. The servers that tests share are for tests that
do no harm to them.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import psutil
from kombu import Connection, Queue
from kombu.exceptions import ChannelError
from sqlalchemy import make_url

from taskyard import embedded
from taskyard.children import NOBODY, as_nobody, dying_with_us, is_root
from tests.proxy import Proxy
from tests.servers import REQUIRED, wanted
from tests.stack import until

#: The database that tests clone on a private PostgreSQL.
TEMPLATE = "ty_template"
_PGBOUNCER = Path("/usr/sbin/pgbouncer")
_RABBITMQ = (Path("/usr/lib/rabbitmq/bin/rabbitmq-server"), Path(shutil.which("rabbitmq-server") or "rabbitmq-server"))


def free_port() -> int:
    """A port that stays free while its owner is down: below those that the kernel gives to outgoing connections."""
    while True:
        port = random.randrange(20000, 30000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _family(pid: int | None) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        if pid is not None:
            process = psutil.Process(pid)
            return [process, *process.children(recursive=True)]
    return []


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


class EmbeddedServer:
    """A server that `taskyard.embedded` starts: ``begin`` on ``folder``, whose path must be short. For the main thread: it ends with the thread."""

    def __init__(self, begin: Callable[[Path], embedded.Server], folder: Path) -> None:
        self._begin = begin
        self._folder = folder
        self._server: embedded.Server | None = begin(folder)
        self.url = self._server.url

    @property
    def pid(self) -> int | None:
        return self._server.pid if self._server else None

    def start(self) -> None:
        """Start it on what it kept, unless it runs. Returns when it serves."""
        if self._server is None:
            self._server = self._begin(self._folder)

    def stop(self) -> None:
        """Stop it cleanly."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def kill(self) -> None:
        """``kill -9``: its process and all below."""
        family = _family(self.pid)
        _signal(family, signal.SIGKILL)
        # Frees what is held for it here; its processes are gone.
        self.stop()
        psutil.wait_procs(family, timeout=20)

    def freeze(self) -> None:
        """SIGSTOP: its sockets stay open, and nobody answers."""
        _signal(_family(self.pid), signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        _signal(_family(self.pid), signal.SIGCONT)

    def close(self) -> None:
        """The end, whatever was done to it."""
        self.thaw()
        self.stop()


def has_rabbitmq() -> bool:
    """Is RabbitMQ installed here?"""
    return any(program.is_file() for program in _RABBITMQ)


class PrivateRabbitMQ:
    """A RabbitMQ node with a name, ports and a folder of its own, which is removed at the end. Messages in durable queues outlive ``kill``.

    ``config`` is added to its rabbitmq.conf, ``advanced`` is the value of the ``rabbit`` application in its advanced.config (Erlang terms).

    Raises:
        FileNotFoundError: RabbitMQ is not installed.
    """

    def __init__(self, config: str = "", advanced: str = "") -> None:
        self._program = next((program for program in _RABBITMQ if program.is_file()), None)
        if self._program is None:
            raise FileNotFoundError("rabbitmq-server is not installed")
        # Not under the folder of a test run: that is closed to all others, and Erlang asks access(2), which forgets capabilities.
        self._folder = Path(tempfile.mkdtemp(prefix="ty-mq-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None
        port, distribution, names = free_port(), free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        self.node = f"ty{port}@localhost"
        self._write(f"listeners.tcp.1 = 127.0.0.1:{port}\n{config}\n", f"[{{rabbit, [{advanced}]}}].\n")
        self._env = self._environment(distribution, names)
        self._names = self._run_epmd(names)
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        if self._process is not None:
            return
        with (self._folder / "out").open("ab") as out:
            command = _owned([str(self._program)])
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self._env, cwd=self._folder, start_new_session=True)
        until(self._serves, 90, "RabbitMQ")

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        _signal(_family(self.pid), signal.SIGSTOP)

    def thaw(self) -> None:
        _signal(_family(self.pid), signal.SIGCONT)

    def close(self) -> None:
        """The end, whatever was done to it."""
        self.kill()
        if self._names is not None:
            self._names.kill()
            self._names.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def log(self) -> str:
        """What the node has logged."""
        return (self._folder / "log" / f"{self.node}.log").read_text(errors="replace")

    def ctl(self, *arguments: str) -> str:
        """rabbitmqctl on this node: slow, about 2 s. Answers what it said."""
        assert self._program is not None
        program = self._program.with_name("rabbitmqctl")
        command = _owned([str(program), "-q", "-n", self.node, *arguments])
        return subprocess.run(command, env=self._env, cwd=self._folder, check=True, capture_output=True, text=True, timeout=60).stdout

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            family = _family(process.pid)
            process.send_signal(number)
            process.wait(60)
            _signal(family, signal.SIGKILL)

    def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "out").read_text(errors="replace")[-2000:]
        return answers(self.url)

    def _write(self, config: str, advanced: str) -> None:
        for name, text in {"rabbitmq.conf": config, "advanced.config": advanced, "env.conf": "", "plugins": "[].\n"}.items():
            (self._folder / name).write_text(text)
        if is_root():
            for path in (self._folder, *self._folder.iterdir()):
                os.chown(path, NOBODY, NOBODY)

    def _environment(self, distribution: int, names: int) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
        here = self._folder
        return kept | {
            "HOME": str(here),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(here / "data"),
            "RABBITMQ_LOG_BASE": str(here / "log"),
            "RABBITMQ_PID_FILE": str(here / "pid"),
            "RABBITMQ_CONFIG_FILE": str(here / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(here / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(here / "env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(here / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(names),
            # Its script then becomes the node by exec, so that the process we start is the one to kill.
            "RUNNING_UNDER_SYSTEMD": "1",
        }

    def _run_epmd(self, port: int) -> subprocess.Popen[bytes] | None:
        """Erlang's register of node names, as a child. Without it, the node would leave one behind that runs for ever."""
        program = shutil.which("epmd")
        if program is None:
            return None
        return subprocess.Popen(_owned([program, "-port", str(port)]), stdin=subprocess.DEVNULL, env=self._env, start_new_session=True)


def _owned(command: list[str]) -> list[str]:
    """The command, ended with us; as nobody if we are root."""
    return as_nobody(command) if is_root() else dying_with_us(command)


class PrivatePgBouncer:
    """A PgBouncer of one's own before a PostgreSQL (``url``), with settings of its ``[pgbouncer]`` section.

    Raises:
        FileNotFoundError: PgBouncer is not installed.
    """

    def __init__(self, url: str, **settings: object) -> None:
        program = _PGBOUNCER if _PGBOUNCER.is_file() else shutil.which("pgbouncer")
        if program is None:
            raise FileNotFoundError("pgbouncer is not installed")
        target = make_url(url)
        self.port = free_port()
        self.url = target.set(host="127.0.0.1", port=self.port, query={}).render_as_string(hide_password=False)
        # Not under the folder of a test run: that is closed to nobody.
        self._folder = Path(tempfile.mkdtemp(prefix="ty-pgb-", dir="/tmp"))
        where = f"host={target.host or target.query['host']} port={target.port or 5432} user={target.username}"
        options = {"listen_addr": "127.0.0.1", "listen_port": self.port, "unix_socket_dir": "", "auth_type": "any"} | settings
        lines = ["[databases]", f"* = {where}", "[pgbouncer]", *(f"{name} = {value}" for name, value in options.items())]
        config = self._folder / "pgbouncer.ini"
        config.write_text("\n".join(lines) + "\n")
        if is_root():
            for path in (self._folder, config):
                os.chown(path, NOBODY, NOBODY)
        with (self._folder / "out").open("ab") as out:
            self._process = subprocess.Popen(_owned([str(program), str(config)]), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        until(self._listens, 20, "PgBouncer")

    def _listens(self) -> bool:
        assert self._process.poll() is None, (self._folder / "out").read_text(errors="replace")[-2000:]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self) -> None:
        """The end of it, and of its connections."""
        family = _family(self._process.pid)
        _signal(family, signal.SIGKILL)
        self._process.wait(20)
        shutil.rmtree(self._folder, ignore_errors=True)


Broker: TypeAlias = EmbeddedServer | PrivateRabbitMQ


class Ground:
    """A private PostgreSQL and a private broker, and a proxy for each that is made when it is asked for."""

    def __init__(self, kind: str, postgres: EmbeddedServer, broker: Broker) -> None:
        self.kind = kind
        self.postgres = postgres
        self.broker = broker
        self._proxies: dict[str, Proxy] = {}

    @property
    def to_postgres(self) -> Proxy:
        """A proxy before PostgreSQL."""
        return self._proxy(self.postgres.url)

    @property
    def to_broker(self) -> Proxy:
        """A proxy before the broker."""
        return self._proxy(self.broker.url)

    def _proxy(self, url: str) -> Proxy:
        if url not in self._proxies:
            self._proxies[url] = Proxy(url, free_port())
        return self._proxies[url]

    def heal(self) -> None:
        """Undo every fault: for whoever comes next."""
        for server in (self.postgres, self.broker):
            server.thaw()
            server.start()
        for proxy in self._proxies.values():
            proxy.heal()

    def close(self) -> None:
        """The end of the proxies."""
        for proxy in self._proxies.values():
            proxy.close()
        self._proxies.clear()


def has_pgbouncer() -> bool:
    """Is PgBouncer installed here? In CI it must be."""
    return REQUIRED or _PGBOUNCER.is_file() or shutil.which("pgbouncer") is not None


def kinds() -> list[str]:
    """The pairs that can be had here: ``embedded``, and ``rabbitmq`` where it is installed. In CI it must be."""
    return ["embedded", "rabbitmq"] if wanted() and (REQUIRED or has_rabbitmq()) else ["embedded"]


def private_postgres(folder: Path) -> EmbeddedServer:
    """A PostgreSQL of one's own. Close it."""
    return EmbeddedServer(embedded.start_postgres, folder)


def private_broker(kind: str, folder: Path, config: str = "", advanced: str = "") -> Broker:
    """A broker of one's own, of a kind that :func:`kinds` names. A restart of the embedded one loses every message. Close it."""
    return PrivateRabbitMQ(config, advanced) if kind == "rabbitmq" else EmbeddedServer(embedded.start_broker, folder)


def answers(broker_url: str) -> bool:
    """Does a broker serve?"""
    connection = Connection(broker_url, connect_timeout=5)
    try:
        with connection, connection.channel() as channel:
            channel.queue_delete("nobody-has-this-queue")
    except (*connection.connection_errors, *connection.channel_errors):
        return False
    return True


def purge(broker_url: str, *queues: str) -> None:
    """Take every message out of these queues."""
    with Connection(broker_url) as connection, connection.channel() as channel:
        for queue in queues:
            channel.queue_purge(queue)


def delete(broker_url: str, *queues: str) -> int:
    """Delete queues behind everybody's back. Answers how many messages waited in them, if the broker is RabbitMQ."""
    with Connection(broker_url) as connection, connection.channel() as channel:
        return sum(channel.queue_delete(queue) or 0 for queue in queues)


def make_anew(broker_url: str, *queues: Queue) -> None:
    """Delete queues and declare them again in the same breath: RabbitMQ nearly always leaves a quorum queue's consumers without messages, and tells nobody."""
    with Connection(broker_url) as connection, connection.channel() as channel:
        for queue in queues:
            bound = queue.bind(channel)
            bound.delete()
            bound.declare()


def depth(broker_url: str, queue: str) -> int | None:
    """Messages that wait in a queue; None if there is no such queue."""
    connection = Connection(broker_url)
    try:
        with connection, connection.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)
    except (ChannelError, *connection.channel_errors):
        return None
