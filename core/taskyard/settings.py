"""One validated, frozen settings object, built at start-up by :func:`load_settings` and passed in."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, SecretStr, StringConstraints

from taskyard import durations
from taskyard.errors import ConfigurationError
from taskyard.events import EVENT_TYPES, SYSTEM_EVENT_TYPES
from taskyard.modelinfo import Key
from taskyard.sources import Leaf, Loaded, read

Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]
Period = Annotated[float | None, Field(ge=60, le=durations.LONGEST.total_seconds()), BeforeValidator(durations.seconds)]
Span = Annotated[float | None, Field(ge=1, le=30 * 86400), BeforeValidator(durations.seconds)]
QueueName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]

#: How the routes are named that stand for one task's subscriptions: with their numbers. No configured route is named so.
SUBSCRIBED = "notify/"


class Section(BaseModel):
    """Part of the settings: frozen, and it knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _host_name(name: str) -> str:
    if not _HOST_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no host name: expected one such as tasks.example.com, without scheme and port, or *")
    return name.lower().rstrip(".")


def _proxy_address(text: str) -> str:
    try:
        return text if text == "*" else str(ipaddress.ip_network(text, strict=False) if "/" in text else ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is no address: expected one such as 10.0.0.1, a network such as 10.0.0.0/8, or *") from None


_HOST_NAME = re.compile(r"\*|(\*\.)?[A-Za-z0-9_][A-Za-z0-9._-]{0,252}")
HostName = Annotated[str, AfterValidator(_host_name)]
ProxyAddress = Annotated[str, AfterValidator(_proxy_address)]


class DatabaseSettings(Section):
    """Where the truth is kept."""

    url: SecretStr | None = Field(
        None,
        description="PostgreSQL URL in libpq's form, such as postgresql://user:password@host/name?sslmode=verify-full. Unset: `taskyard up` starts its own.",
    )
    pool_size: int = Field(10, ge=1, le=200, description="Connections that one process keeps open at most.")
    connect_timeout: Seconds = Field(1.5, description="Seconds to wait for a connection, and for one from the pool, before a request is refused.")
    statement_timeout: Seconds = Field(30.0, description="Seconds that one statement may take.")


class BrokerSettings(Section):
    """The message broker that Celery uses."""

    url: SecretStr | None = Field(None, description="Celery broker URL, such as amqp://user:password@host:5672//. Unset: `taskyard up` starts its own.")
    ca_file: Path | None = Field(
        None, description="Certificates (PEM) of the authority that signed the broker's, for amqps:// and rediss://. Unset: the system's."
    )
    result_backend: str | None = Field(
        None, repr=False, description="Celery result backend for Celery tasks of your own; Taskyard keeps its results in PostgreSQL."
    )
    prefix: QueueName = Field("taskyard", description="First part of every broker queue's name; two installations on one broker need two.")
    confirm_timeout: Seconds = Field(5.0, description="Seconds to wait for the broker's answer, such as its confirmation of a message.")
    unused_after: Seconds = Field(
        600.0, description="Seconds after which a broker queue that no worker serves, and in which no task waits, is deleted from the broker."
    )
    settle_after: Seconds = Field(
        600.0, description="Seconds after which the message of a task that still runs is acknowledged: less than RabbitMQ's consumer_timeout (30 minutes)."
    )


class ApiSettings(Section):
    """The REST service."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Largest request body, in bytes.")
    list_connections: int | None = Field(
        None, ge=1, le=200, description="Connections that lists and actions of one web process use at once. Unset: half of `database.pool_size`."
    )
    list_timeout: Seconds = Field(5.0, description="Seconds that one statement of a list or an action may take.")
    max_streams: int = Field(5000, ge=0, le=100_000, description="Live event streams that one web process serves at once.")
    cors_origins: tuple[str, ...] = Field((), description="Origins of web pages that may call from a browser, such as https://app.example.com. Empty: none.")
    direct_hints: bool = Field(
        True,
        description="Tell workers of a new task directly, while its queue is short; needs `broker.url`. Off: the dispatcher does it, a few milliseconds later.",
    )
    drain_delay: float = Field(
        5.0,
        ge=0,
        le=3600,
        description="Seconds for which a web process that gets SIGTERM says `not ready` and still serves: longer than load balancers take to notice.",
    )
    keep_alive: Seconds = Field(
        75.0, description="Seconds for which an idle connection is kept open: longer than a reverse proxy keeps it (nginx: 60), which would reuse a closed one."
    )
    hosts: tuple[HostName, ...] | None = Field(
        None,
        description="Names by which the service may be called, such as tasks.example.com or *.example.com, besides localhost, *.localhost, IP addresses "
        "and `api.host`; `*` for any name. Unset: no others where no keys are asked for, else any.",
    )
    trusted_proxies: tuple[ProxyAddress, ...] = Field(
        (), description="Addresses and networks of reverse proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` count, such as 10.0.0.0/8; `*` for all."
    )
    root_path: str = Field("", description="Path prefix that a reverse proxy strips.")
    idempotency_period: Seconds = Field(86400.0, description="Seconds for which an `Idempotency-Key` is remembered, at least.")


class AuthSettings(Section):
    """Who may call."""

    mode: Literal["none", "keys"] | None = Field(
        None, description="`keys` asks every caller for an access key, `none` serves everybody who reaches the address. Unset: `none` on loopback, else `keys`."
    )


class DispatchSettings(Section):
    """How ready tasks reach the broker, and how lost ones are found."""

    window: int = Field(
        256,
        ge=1,
        le=100_000,
        description="Tasks of one queue that wait in the broker at most, for each lane (sync, async); of those that travel together up to 8 times as many.",
    )
    tick: Seconds = Field(1.0, description="Seconds between two looks when nothing wakes the dispatcher.")
    sweep_after: Seconds = Field(30.0, description="Seconds after which a queued task that nobody claimed is looked at as lost in the broker.")
    worker_silence: Seconds = Field(15.0, description="Seconds without a heartbeat after which a worker counts as lost.")
    overdue_after: Seconds = Field(
        120.0,
        description="Seconds past its timeout after which a task that its worker has not ended counts as lost, although the worker beats; "
        "never fewer than `worker.lifespan_timeout`, `worker.cancel_grace`, three times `worker.kill_grace` and 10 s together.",
    )
    max_lost: int = Field(3, ge=0, le=100, description="Times that a task may lose its worker and still be run again.")
    stalled_after: Seconds = Field(300.0, description="Seconds that a ready task may wait before its queue is told of as `queue.stalled`.")
    park_delay: Seconds = Field(
        30.0, description="Seconds that a parked task waits before it is tried again: its worker lacks its type, or can't start its plugin's lifespan."
    )


class WorkerSettings(Section):
    """The Celery worker."""

    processes: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        le=1024,
        description="Sync handlers that run at once, each in a process; unset: as many as there are cores.",
    )
    async_slots: int = Field(1000, ge=1, le=100_000, description="Async handlers that run at once in the worker's event loop.")
    queues: tuple[QueueName, ...] | None = Field(None, min_length=1, description="Queues to work on. Unset: `default` and all that handlers name.")
    heartbeat: Seconds = Field(3.0, description="Seconds between two heartbeats of a worker.")
    cancel_grace: Seconds = Field(5.0, description="Seconds within which a running task that is asked to stop has stopped, one way or the other.")
    kill_grace: Seconds = Field(1.0, description="Seconds between the polite end of a handler at its timeout and SIGKILL.")
    stop_grace: Seconds = Field(20.0, description="Seconds that running tasks get at shutdown before they go back in line.")
    lifespan_timeout: Seconds = Field(
        60.0, description="Seconds that a plugin's `taskyard_lifespan` may take to start in a process; its tasks' timeouts begin afterwards."
    )
    block_warning: Seconds = Field(
        2.0, description="Seconds for which an async handler blocks its event loop, and so all async tasks of the worker, before the log names it."
    )
    max_result_bytes: int = Field(1_048_576, ge=1024, description="Largest result, in bytes of JSON.")


class DeliverySettings(Section):
    """How notifications are sent."""

    max_attempts: int = Field(8, ge=1, le=50, description="Tries of one delivery before it is kept as dead.")
    base: Seconds = Field(10.0, description="Seconds before the second try; each further one waits `factor` times as long.")
    factor: float = Field(9.0, ge=1, le=100, description="Growth of the wait between tries. The defaults spread 8 tries over about three days.")
    max_delay: Seconds = Field(86400.0, description="Longest wait between two tries, in seconds.")
    timeout: Seconds = Field(30.0, description="Seconds that one try may take.")
    concurrency: int = Field(50, ge=1, le=1000, description="Deliveries that one worker sends at once.")
    subscriptions: tuple[str, ...] = Field((), description="Notifiers that a submission's `notify` may name; none that is for operators only. Empty: none.")


class LogSettings(Section):
    """What the processes write to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity that is written.")
    format: Literal["console", "json"] = Field("console", description="`console` for people, `json` for programs.")


class RetentionSettings(Section):
    """How long ended tasks are kept, with their history. A number of seconds, or with a unit: 12h, 30d. Unset: for ever."""

    succeeded: Period = Field(None, description="After this time a task that succeeded is deleted.")
    failed: Period = Field(None, description="After this time a task that failed is deleted.")
    cancelled: Period = Field(None, description="After this time a task that was cancelled is deleted.")
    expired: Period = Field(None, description="After this time a task that expired is deleted.")
    system: Period = Field(None, description="After this time a system event or a digest is deleted, with its deliveries.")
    audit: Period = Field(None, description="After this time an entry of the audit is deleted.")


Amount = Annotated[int | None, Field(ge=1, le=2**31 - 1)]


class Quota(Section):
    """What one namespace may do over REST. Unset: as much as it likes."""

    submissions_per_second: float | None = Field(None, gt=0, le=1_000_000, description="Tasks that it submits a second; each of a batch counts.")
    live_tasks: Amount = Field(None, description="Its tasks that have not ended.")
    payload_bytes: Amount = Field(None, description="Bytes of JSON of one task's payload.")
    queues: tuple[str, ...] | None = Field(
        None, description="Queues that its submissions may name, as globs such as report-*; `default` and those of installed handlers always may. Unset: any."
    )


class QuotaSettings(Quota):
    """What each namespace may do over REST. Unset: as much as it likes."""

    namespaces: dict[str, Quota] = Field(
        default_factory=dict,
        description="`[quotas.namespaces.<name>]`: the same for one namespace; what it does not set is as for all others.",
    )

    @property
    def any(self) -> bool:
        """Is there a quota at all?"""
        return any(
            value is not None for quota in (self, *self.namespaces.values()) for value in (quota.submissions_per_second, quota.live_tasks, quota.payload_bytes)
        )

    def of(self, namespace: str) -> Quota:
        """A namespace's quotas. What its own table does not set is as for all others."""
        own = self.namespaces.get(namespace)
        if own is None:
            return self
        return Quota(**{name: getattr(own if name in own.model_fields_set else self, name) for name in Quota.model_fields})


class PluginSettings(BaseModel):
    """Which plugins run. ``[plugins.<name>]`` tables are validated by each plugin's own model."""

    model_config = ConfigDict(extra="allow", frozen=True)

    only: tuple[str, ...] | None = Field(None, description="Allow-list: no other plugin runs.")
    disabled: tuple[str, ...] = Field((), description="Plugins that are installed and must not run.")
    import_timeout: Seconds = Field(60.0, description="Seconds that one plugin may take to be imported and set up, in each process; then it has failed.")

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """The ``[plugins.<name>]`` tables."""
        return dict(self.model_extra or {})


class Route(Section):
    """One ``[[routes]]`` entry: which events go to which notifier, with which options."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)] = Field(description="The route's name, in deliveries and logs. Unique.")
    notifier: str = Field(description="The notifier that sends.")
    events: tuple[Literal[EVENT_TYPES + SYSTEM_EVENT_TYPES], ...] = Field(min_length=1, description="Event types, such as task.failed or worker.lost.")  # type: ignore[valid-type]  # the tuples are constants
    types: tuple[str, ...] | None = Field(None, description="Task types, as globs such as report.*. Unset: all.")
    queues: tuple[str, ...] | None = Field(None, description="Queues. Unset: all.")
    tags: tuple[str, ...] | None = Field(None, description="Tags, of which a task needs at least one. Unset: all.")
    min_priority: int = Field(0, ge=0, le=9, description="Least priority.")
    namespaces: tuple[str, ...] | None = Field(None, description="Namespaces. Unset: all.")
    every: Span = Field(
        None, description="Digests: at most one message in this time, such as 10m, with counts and the first events. Unset: a message for each event."
    )
    first: int = Field(10, ge=0, le=100, description="Events that a digest shows; the others are only counted.")
    rate: Annotated[str, StringConstraints(pattern=r"^[1-9]\d{0,5}/[smhd]$")] | None = Field(
        None, description="Most deliveries in a time, evenly spaced, such as 30/m (also s, h, d); what is over it waits. Unset: no limit."
    )
    options: dict[str, Any] = Field(default_factory=dict, repr=False, description="Validated by the notifier's own model.")

    @property
    def gap(self) -> float | None:
        """The seconds between two deliveries that ``rate`` asks for."""
        if self.rate is None:
            return None
        number, _, unit = self.rate.partition("/")
        return durations.parse(f"1{unit}").total_seconds() / int(number)


class Settings(Section):
    """All settings of a process."""

    database: DatabaseSettings = DatabaseSettings()
    broker: BrokerSettings = BrokerSettings()
    api: ApiSettings = ApiSettings()
    auth: AuthSettings = AuthSettings()
    dispatch: DispatchSettings = DispatchSettings()
    worker: WorkerSettings = WorkerSettings()
    deliveries: DeliverySettings = DeliverySettings()
    log: LogSettings = LogSettings()
    retention: RetentionSettings = RetentionSettings()
    quotas: QuotaSettings = QuotaSettings()
    plugins: PluginSettings = PluginSettings()
    routes: tuple[Route, ...] = ()
    _lines: dict[Key, str] = PrivateAttr(default_factory=dict)

    def place(self, key: Key) -> str:
        """Where a setting, or the nearest thing around it, was set, with a colon: ``taskyard.toml, line 7: ``. Nothing where that is not known."""
        found = next((self._lines[key[:length]] for length in range(len(key), 0, -1) if key[:length] in self._lines), "")
        return f"{found}: " if found else ""

    @property
    def asks_for_keys(self) -> bool:
        """Does the REST service ask every caller for an access key? Where nothing is set, it does on every address but loopback."""
        return self.auth.mode == "keys" or (self.auth.mode is None and not is_loopback(self.api.host))

    @property
    def host_names(self) -> tuple[str, ...] | None:
        """The names by which the REST service may be called, besides those of the loopback and IP addresses; None for any.

        Where no keys are asked for, a web page that points a name of its own at the service must not read what it answers (DNS rebinding).
        """
        chosen = self.api.hosts
        if "*" in (chosen or ()) or (chosen is None and self.asks_for_keys):
            return None
        return (self.api.host, *(chosen or ()))


def is_loopback(host: str) -> bool:
    """Does only this machine reach it? A name other than localhost counts as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


#: Names that deployments commonly have, and what they set. A TASKYARD_ name in the same source is stronger.
ALIASES: dict[str, Key] = {
    "DATABASE_URL": ("database", "url"),
    "CELERY_BROKER_URL": ("broker", "url"),
    "CELERY_RESULT_BACKEND": ("broker", "result_backend"),
    "FORWARDED_ALLOW_IPS": ("api", "trusted_proxies"),
}


def load_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """The settings of this process.

    Sources, the strongest first: ``overrides`` (a mapping for each section; None means not given), the environment
    (``TASKYARD_<SECTION>__<NAME>``), ``.env`` in the current folder, and ``taskyard.toml``: ``config``, else what
    TASKYARD_CONFIG names, else ``./taskyard.toml`` if it is there.

    Raises:
        ConfigurationError: one line for each problem, with its place and never a value.
    """
    return load_with_places(config, **overrides).settings


def load_with_places(config: Path | None = None, **overrides: Any) -> Loaded[Settings]:
    """Like :func:`load_settings`, with the place that each setting came from."""
    loaded = read(Settings, config=config, aliases=ALIASES, fallback=_postgres_parts, overrides=overrides)
    loaded.settings._lines = loaded.lines
    return loaded


def _postgres_parts(variables: Mapping[str, str]) -> dict[Key, Leaf]:
    """The database's URL from POSTGRES_DB, _USER, _PASSWORD, _HOST and _PORT, for when no source gives one."""
    parts = {name: variables.get(f"POSTGRES_{name}") or None for name in ("DB", "USER", "PASSWORD", "HOST", "PORT")}
    if not parts["HOST"] and not parts["DB"]:
        return {}
    if not (port := parts["PORT"] or "5432").isdecimal():
        raise ConfigurationError("POSTGRES_PORT: expected a number")
    from sqlalchemy import URL  # Here, not above: `taskyard --help` need not wait for it.

    user = parts["USER"] or "postgres"
    host = parts["HOST"] or "localhost"
    # A folder of sockets, or several hosts, can't stand before the port.
    where: dict[str, Any] = {"query": {"host": host, "port": port}} if re.search("[/,]", host) else {"host": host, "port": int(port)}
    url = URL.create("postgresql", user, parts["PASSWORD"], database=parts["DB"] or user, **where)
    return {("database", "url"): Leaf(url.render_as_string(hide_password=False), "environment or .env", variable="POSTGRES_HOST, POSTGRES_DB, ...")}
