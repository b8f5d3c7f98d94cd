"""``DATABASE_URL``, read once for both drivers: the web service connects by asyncpg, all else by psycopg, and the URL means the same to both.

The form is libpq's (``postgresql://user:password@host1:5432,host2/name?sslmode=require``); what SQLAlchemy's form has beside it works, too.
libpq's variables (``PGSSLMODE``, ...) and its service file count where the URL says nothing. A parameter that asyncpg does not have is
refused: it would hold for half of the roles only.
"""

from __future__ import annotations

import configparser
import ipaddress
import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from taskyard.errors import ConfigurationError
from taskyard.spelling import did_you_mean

EXPECTED = "database.url: expected a URL such as postgresql://user:password@host:5432/name"
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
#: Taskyard writes, so a server that takes no writes is never the right one.
TARGETS = ("any", "read-write", "primary")
#: Parameters that both drivers take as they are, with libpq's variable for each.
SHARED: dict[str, str | None] = {
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslpassword": None,
    "sslcrl": "PGSSLCRL",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "krbsrvname": "PGKRBSRVNAME",
    "gsslib": "PGGSSLIB",
    "passfile": "PGPASSFILE",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "connect_timeout": None,
    "options": "PGOPTIONS",
    "hostaddr": "PGHOSTADDR",
    "keepalives": None,
    "keepalives_idle": None,
    "keepalives_interval": None,
    "keepalives_count": None,
    "tcp_user_timeout": None,
}
#: What Linux takes at most, by parameter.
NUMBERS = {
    "connect_timeout": 999_999_999,
    "keepalives": 999_999_999,
    "keepalives_idle": 32_767,
    "keepalives_interval": 32_767,
    "keepalives_count": 127,
    "tcp_user_timeout": 2**31 - 1,
}
TLS_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
WORDS = {
    "sslmode": SSL_MODES,
    "ssl_min_protocol_version": TLS_VERSIONS,
    "ssl_max_protocol_version": TLS_VERSIONS,
    "sslnegotiation": ("postgres", "direct"),
    "gsslib": ("gssapi", "sspi"),
}
#: Who and where.
PLACES = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
#: Parameters that asyncpg does not have, with the values by which nothing is lost, and libpq's variable for each.
ONE_DRIVER: dict[str, tuple[tuple[str, ...], str | None]] = {
    "channel_binding": (("prefer", "disable"), "PGCHANNELBINDING"),
    "gssencmode": (("prefer", "disable"), "PGGSSENCMODE"),
    "gssdelegation": (("0",), "PGGSSDELEGATION"),
    "require_auth": ((), "PGREQUIREAUTH"),
    "requirepeer": ((), "PGREQUIREPEER"),
    "sslcompression": (("0",), "PGSSLCOMPRESSION"),
    "sslsni": (("1",), "PGSSLSNI"),
    "sslcertmode": (("allow",), "PGSSLCERTMODE"),
    "sslcrldir": ((), "PGSSLCRLDIR"),
    "sslkeylogfile": ((), None),
    "load_balance_hosts": (("disable",), "PGLOADBALANCEHOSTS"),
    "replication": (("false", "off", "no", "0"), None),
    "min_protocol_version": (("3.0",), "PGMINPROTOCOLVERSION"),
    "max_protocol_version": (("3.0", "latest"), "PGMAXPROTOCOLVERSION"),
    "scram_client_key": ((), None),
    "scram_server_key": ((), None),
    "oauth_issuer": ((), None),
    "oauth_client_id": ((), None),
    "oauth_client_secret": ((), None),
    "oauth_scope": ((), None),
    # Each session sets it to UTF8.
    "client_encoding": (("utf8", "UTF8", "utf-8", "UTF-8", "unicode", "auto"), None),
}
#: Names that Taskyard gives its connections itself: one for each role.
OURS = ("application_name", "fallback_application_name")
INSTEAD = {
    "channel_binding": " sslmode=verify-full with sslrootcert proves by certificate that the server is the right one.",
    "load_balance_hosts": " The hosts are tried in their order.",
}
#: Names that other systems have for a schema.
SCHEMA_NAMES = ("schema", "currentschema", "search_path", "searchpath")
KNOWN = (*PLACES, *SHARED, *ONE_DRIVER, *OURS, "service", "servicefile", "database", "ssl")

_URL = r"(?P<scheme>[\w+]+)://(?:(?P<user>[^:/@?]*)(?::(?P<password>SECRET))?@)?(?P<hosts>[^/?]*)(?:/(?P<name>[^?]*))?(?:\?(?P<query>.*))?"
_STRICT = re.compile(_URL.replace("SECRET", "[^@/]*"), re.DOTALL)
#: SQLAlchemy takes a password with a slash in it, libpq none.
_LENIENT = re.compile(_URL.replace("SECRET", "[^@]*"), re.DOTALL)
_HOST = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<name>[^:@\[\]]*))(?::(?P<port>\d*))?")
_SOCKETS = (Path("/var/run/postgresql"), Path("/run/postgresql"), Path("/tmp"))  # noqa: S108  # where servers put their sockets


@dataclass(frozen=True, slots=True)
class PostgresUrl:
    """Where to connect, as whom, and how. ``parameters`` are of :data:`SHARED`, without those that stand for places."""

    hosts: tuple[tuple[str, int], ...]
    user: str
    password: str | None
    database: str
    parameters: Mapping[str, str]

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """The hosts, by number where ``hostaddr`` gives numbers."""
        numbers = self.parameters.get("hostaddr", "").split(",") if "hostaddr" in self.parameters else []
        return tuple((number or host, port) for number, (host, port) in zip(numbers, self.hosts, strict=True)) if numbers else self.hosts

    def libpq(self) -> dict[str, str]:
        """All of it as libpq's keywords."""
        places = {"host": ",".join(host for host, _ in self.hosts), "port": ",".join(str(port) for _, port in self.hosts)}
        who = {"user": self.user, "dbname": self.database} | ({} if self.password is None else {"password": self.password})
        # By 0 people mean the system's own, but libpq hands it on to Linux, which refuses it.
        rest = {name: value for name, value in self.parameters.items() if not name.startswith("keepalives_") or int(value)}
        return {**places, **who, **rest}


def read_url(text: str, environment: Mapping[str, str] = os.environ) -> PostgresUrl:
    """A URL's meaning.

    Raises:
        ConfigurationError: it is malformed, or has a parameter that not both drivers know; never with the password.
    """
    # A file of secrets often ends in a newline.
    given = _parts(text.strip())
    given = _service(given, environment) | given
    for name, variable in _variables():
        if variable and environment.get(variable):
            given.setdefault(name, environment[variable])
    if environment.get("PGREQUIRESSL", "").startswith("1"):
        given.setdefault("sslmode", "require")
    if damaged := next((name for name, value in given.items() if "\0" in value), None):
        raise ConfigurationError(f"database.url: {damaged}: expected no null character (%00)")
    _refuse(given)
    user = given.get("user") or _system_user()
    hosts = _hosts(given)
    parameters = {name: value for name, value in given.items() if name in SHARED and value}
    _check(parameters, hosts)
    if parameters.get("sslrootcert") == "system":
        parameters["sslmode"] = "verify-full"
    if len(hosts) > 1:
        parameters.setdefault("target_session_attrs", "read-write")
    return PostgresUrl(hosts, user, given.get("password") or None, given.get("dbname") or user, parameters)


def _parts(text: str) -> dict[str, str]:
    """The URL as libpq's keywords, decoded."""
    found = _STRICT.fullmatch(text)
    if found and not found["user"] and ("@" in (found["name"] or "") or not _are_hosts(found["hosts"])):
        found = _LENIENT.fullmatch(text)
    if not found or not _are_hosts(found["hosts"]):
        encode = ". Write @ as %40 and / as %2F in a user or a password" if text.count("@") > 1 else ""
        raise ConfigurationError(f"{EXPECTED}{encode}")
    backend = found["scheme"].partition("+")[0]
    if backend not in ("postgresql", "postgres"):
        raise ConfigurationError(f"database.url: Taskyard needs PostgreSQL (postgresql://...), not {backend}://")
    places = [_HOST.fullmatch(host) for host in found["hosts"].split(",")]
    parts = {
        "host": ",".join(unquote(place["v6"] or place["name"] or "") for place in places if place),
        "port": ",".join(place["port"] or "" for place in places if place),
        "user": unquote(found["user"] or ""),
        "password": unquote(found["password"] or ""),
        "dbname": unquote(found["name"] or ""),
    }
    return {name: value for name, value in parts.items() if value.strip(",")} | _query(found["query"] or "")


def _are_hosts(text: str) -> bool:
    return all(_HOST.fullmatch(host) for host in text.split(","))


def _query(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in filter(None, text.split("&")):
        name, equals, value = (unquote(part) for part in pair.partition("="))
        if not equals:
            raise ConfigurationError(f"database.url: {name}: expected name=value after the ?")
        name = {"database": "dbname"}.get(name, name)
        if name == "ssl":
            # asyncpg's name for it, and JDBC's.
            name, value = "sslmode", {"true": "require", "false": "disable"}.get(value, value)
        if name not in KNOWN:
            schema = " For a schema, write options=-csearch_path%3DNAME." if name.lower() in SCHEMA_NAMES else ""
            raise ConfigurationError(f"database.url: {name} is no parameter of PostgreSQL's connections.{schema or did_you_mean(name.lower(), KNOWN)}")
        if name == "options":
            # As SQLAlchemy writes spaces. No option of a session has a plus.
            value = value.replace("+", " ")
        # SQLAlchemy writes several hosts as host=a:1&host=b:2.
        found[name] = f"{found[name]},{value}" if name == "host" and name in found else value
    return found


def _service(given: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """What the service file says of the service that is named."""
    name = given.get("service") or environment.get("PGSERVICE")
    if not name:
        return {}
    own = given.get("servicefile") or environment.get("PGSERVICEFILE") or str(Path.home() / ".pg_service.conf")
    files = [Path(own), Path(environment.get("PGSYSCONFDIR", "/etc/postgresql-common"), "pg_service.conf")]
    for path in files:
        parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#",), strict=False)
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise ConfigurationError(f"database.url: service={name}: {path} is no service file") from error
        if parser.has_section(name):
            return dict(parser.items(name))
    raise ConfigurationError(f"database.url: service={name}: no such service in {' or '.join(map(str, files))}")


def _variables() -> list[tuple[str, str | None]]:
    return [*PLACES.items(), *SHARED.items(), *((name, variable) for name, (_, variable) in ONE_DRIVER.items())]


def _refuse(given: Mapping[str, str]) -> None:
    for name, (harmless, variable) in ONE_DRIVER.items():
        if given.get(name) and given[name] not in harmless:
            shown = "" if "key" in name or "secret" in name else f"={given[name]}"
            otherwise = f", or write {name}={harmless[0]}" if harmless else ""
            raise ConfigurationError(
                f"database.url: {name}{shown}: the web service's driver, asyncpg, does not have it, and it would hold for the other roles only. "
                f"Leave it out{f' (also the variable {variable})' if variable else ''}{otherwise}.{INSTEAD.get(name, '')}"
            )


def _hosts(given: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    hosts = given.get("host", "").split(",")
    ports = given.get("port", "").split(",")
    if "port" not in given:
        split = [re.fullmatch(r"([^:/\[]+):(\d+)|\[([^\]]+)\]:(\d+)", host) for host in hosts]
        ports = [(found[2] or found[4]) if found else "" for found in split]
        hosts = [(found[1] or found[3]) if found else host for found, host in zip(split, hosts, strict=True)]
    if len(hosts) == 1 and not hosts[0] and given.get("hostaddr"):
        hosts = given["hostaddr"].split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    if len(ports) != len(hosts):
        raise ConfigurationError(f"database.url: {len(hosts)} hosts have {len(ports)} ports; expected one port for all, or one for each")
    for port in filter(None, ports):
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigurationError("database.url: port: expected a number from 1 to 65535")
    return tuple(_place(host, int(port or 5432)) for host, port in zip(hosts, ports, strict=True))


def _place(host: str, port: int) -> tuple[str, int]:
    """A host without a name is the server of this machine: its socket where there is one."""
    if host.startswith("@"):
        raise ConfigurationError("database.url: host: asyncpg does not have abstract sockets; expected a name, an address or a folder")
    if host:
        return host, port
    folder = next((folder for folder in _SOCKETS if (folder / f".s.PGSQL.{port}").exists()), None)
    return (str(folder) if folder else "localhost"), port


def _check(parameters: Mapping[str, str], hosts: tuple[tuple[str, int], ...]) -> None:
    for name, words in WORDS.items():
        value = parameters.get(name, words[0])
        if value not in words:
            raise ConfigurationError(f"database.url: {name}: expected one of {', '.join(words)}.{did_you_mean(value, words)}")
    for name, most in NUMBERS.items():
        value = parameters.get(name, "0")
        if not re.fullmatch("[0-9]{1,10}", value) or int(value) > most:
            raise ConfigurationError(f"database.url: {name}: expected a whole number from 0 to {most}")
    least, most_tls = (TLS_VERSIONS.index(parameters.get(f"ssl_{end}_protocol_version", word)) for end, word in (("min", "TLSv1"), ("max", "TLSv1.3")))
    if least > most_tls:
        raise ConfigurationError("database.url: ssl_min_protocol_version: expected no later version than ssl_max_protocol_version")
    mode = parameters.get("sslmode")
    if parameters.get("sslrootcert") == "system" and mode not in (None, "verify-full"):
        raise ConfigurationError(f"database.url: sslrootcert=system: expected sslmode=verify-full with it, not {mode}")
    if parameters.get("sslnegotiation") == "direct" and mode not in SSL_MODES[3:] and parameters.get("sslrootcert") != "system":
        raise ConfigurationError(f"database.url: sslnegotiation=direct: expected sslmode={SSL_MODES[3]} or a stronger one with it")
    if (target := parameters.get("target_session_attrs", "any")) not in TARGETS:
        raise ConfigurationError(f"database.url: target_session_attrs={target}: expected one of {', '.join(TARGETS)}: Taskyard has to write")
    if "hostaddr" in parameters:
        _check_addresses(parameters["hostaddr"].split(","), hosts, mode)
    for name in ("sslrootcert", "sslcert", "sslkey", "sslcrl"):
        path = parameters.get(name, "")
        if path and (name, path) != ("sslrootcert", "system") and not os.access(path, os.R_OK):
            raise ConfigurationError(f"database.url: {name}: {path}: {'not readable by this user' if Path(path).exists() else 'no such file'}")
    root = os.path.expanduser("~/.postgresql/root.crt")  # noqa: PTH111  # it does without a home
    by_network = not all(host.startswith("/") for host, _ in hosts)
    if by_network and mode in SSL_MODES[4:] and "sslrootcert" not in parameters and not os.access(root, os.R_OK):
        raise ConfigurationError(
            f"database.url: sslmode={mode}: expected sslrootcert=FILE with it{' (or sslrootcert=system)' * (mode == 'verify-full')}, as {root} is not there"
        )
    if "sslkey" in parameters:
        _check_key(Path(parameters["sslkey"]))


def _check_key(path: Path) -> None:
    """libpq takes no key that others could read; asyncpg takes any."""
    found = path.stat()
    if found.st_mode & (0o037 if found.st_uid == 0 else 0o077):
        raise ConfigurationError(f"database.url: sslkey: {path}: others may read or write it. Run chmod 600 (640, if root owns it).")


def _check_addresses(addresses: list[str], hosts: tuple[tuple[str, int], ...], mode: str | None) -> None:
    if len(addresses) != len(hosts):
        raise ConfigurationError("database.url: hostaddr: expected as many addresses as hosts")
    if mode == "verify-full":
        raise ConfigurationError("database.url: hostaddr: asyncpg checks a certificate by the address that it connects to. Leave it out, or use verify-ca.")
    try:
        for address in filter(None, addresses):
            ipaddress.ip_address(address)
    except ValueError as error:
        raise ConfigurationError("database.url: hostaddr: expected IP addresses; names belong in host") from error


def _system_user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError as error:
        raise ConfigurationError("database.url: it names no user, and this process's user has no name. Write postgresql://user@...") from error
