"""Attacks on a real process: each is answered with a 4xx or cut off, memory stays where it was, and the service goes on."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.databases import cloned

MIB = 1024 * 1024
#: What the process may grow by, however much is thrown at it: a few bodies of the largest size, read and parsed.
ROOM = 48 * MIB
JSON = b"Content-Type: application/json\r\n"


@dataclass(frozen=True)
class Service:
    """A `taskyard serve` of its own."""

    port: int
    process: psutil.Process

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def memory(self) -> int:
        return int(self.process.memory_info().rss)

    def goes_on(self) -> bool:
        return status(self.say(request(b'{"type": "demo.echo", "payload": {"text": "x"}}'))) == 201

    def say(self, *parts: bytes) -> bytes:
        """All that is answered. A service that has heard enough may close while the rest is still sent."""
        with self.connect() as connection:
            try:
                for part in parts:
                    connection.sendall(part)
            except OSError:
                pass
            return read(connection)


def read(connection: socket.socket) -> bytes:
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionError:
        pass
    return found


def request(body: bytes, headers: bytes = JSON) -> bytes:
    head = b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + headers
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def status(said: bytes) -> int | None:
    """None: it was cut off without an answer."""
    return int(said.split(b" ", 2)[1]) if said else None


@pytest.fixture(scope="module")
def service(postgres_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("attacked")
    with cloned(postgres_url, template) as url:
        environment = {**os.environ, "DATABASE_URL": url, "TASKYARD_LOG__FORMAT": "json"}
        log = folder / "log"
        with log.open("wb") as said:
            command = [sys.executable, "-m", "taskyard", "serve", "--port", "0"]
            process = subprocess.Popen(command, env=environment, cwd=folder, stderr=said, stdout=said)
        try:
            yield started(process, log)
            assert process.poll() is None, log.read_text()
            assert "Traceback" not in log.read_text()
        finally:
            process.kill()
            process.wait()


def started(process: subprocess.Popen[bytes], log: Path) -> Service:
    while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())):
        assert process.poll() is None, log.read_text()
    service = Service(int(found[1]), psutil.Process(process.pid))
    for _ in range(20):
        assert service.goes_on()
    return service


BOMB = gzip.compress(b" " * (200 * MIB))
TASK = b'{"type": "demo.echo", "payload": {"text": %s}}'
#: What is sent, and what may be answered.
BODIES: dict[str, tuple[bytes, int]] = {
    "a gzip bomb": (request(BOMB, JSON + b"Content-Encoding: gzip\r\n"), 415),
    "a gzip bomb that does not say so": (request(BOMB), 400),
    "a deflate bomb": (request(BOMB, JSON + b"Content-Encoding: deflate, gzip\r\n"), 415),
    "a deep array": (request(b"[" * 500_000 + b"]" * 500_000), 400),
    "a deep object": (request(b'{"a":' * 150_000 + b"1" + b"}" * 150_000), 400),
    "a name twice": (request(b'{"type": "demo.echo", "type": "demo.sleep", "payload": {"text": "x"}}'), 400),
    "a name a hundred thousand times": (request(b"{" + b",".join([b'"a":1'] * 100_000) + b"}"), 400),
    "NaN": (request(TASK % b"NaN"), 400),
    "Infinity": (request(TASK % b"-Infinity"), 400),
    "a number of a million digits": (request(TASK % (b"9" * 1_000_000)), 400),
    "a fraction of a million digits": (request(TASK % (b"0." + b"9" * 1_000_000)), 422),
    "an exponent of a thousand digits": (request(TASK % (b"1e" + b"9" * 1000)), 422),
    "NUL": (request(TASK % rb'"\u0000"'), 422),
    "a raw NUL": (request(TASK % b'"\x00"'), 400),
    "a lone surrogate": (request(TASK % rb'"\ud800"'), 400),
    "surrogates the wrong way round": (request(TASK % rb'"\udc00\ud800"'), 400),
    "invalid UTF-8": (request(TASK % b'"\xc3\x28"'), 400),
    "UTF-8 that is too long": (request(TASK % b'"\xc0\x80"'), 400),
    "a surrogate in UTF-8": (request(TASK % b'"\xed\xa0\x80"'), 400),
    "a body that is too large": (request(TASK % (b'"' + b"x" * (20 * MIB) + b'"')), 413),
    "an unknown type of a megabyte": (request(b'{"type": "' + b"x" * 1_000_000 + b'", "payload": 1}'), 422),
    "a hundred thousand names": (request(b'{"type": "demo.echo", "payload": {' + b",".join(b'"%d":0' % n for n in range(80_000)) + b"}}"), 422),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_malicious_body_is_refused_and_nothing_is_kept_of_it(service: Service, name: str) -> None:
    sent, expected = BODIES[name]
    before = service.memory()
    for _ in range(5):
        said = service.say(sent)
        assert status(said) in (expected, None) if len(sent) > 2 * MIB else status(said) == expected
        if said:
            head, _, body = said.partition(b"\r\n\r\n")
            assert b"application/problem+json" in head
            assert json.loads(body)["type"].startswith("urn:taskyard:problem:")
            assert len(body) < 5000
    assert service.memory() - before < ROOM
    assert service.goes_on()


HEADERS: dict[str, bytes] = {
    "CRLF in a header's value": b"GET /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: a\r\n b\r\nConnection: close\r\n\r\n",
    "a bare CR in a header": b"GET /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: a\rSet-Cookie: b\r\nConnection: close\r\n\r\n",
    "a bare LF in a header": b"GET /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: a\nSet-Cookie: b\r\nConnection: close\r\n\r\n",
    "encoded CRLF in the address": b"GET /api/v1/tasks/%0d%0aSet-Cookie:%20b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "encoded CRLF in the query": b"GET /api/v1/tasks?cursor=%0d%0aSet-Cookie:%20b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "NUL in the address": b"GET /api/v1/tasks/%00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "a raw NUL in the address": b"GET /api/v1/tasks/\x00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "invalid UTF-8 in the address": b"GET /api/v1/tasks/%ff%fe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "invalid UTF-8 in the query": b"GET /api/v1/tasks?tag=%ff%fe&limit=%ff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "a huge header": b"GET /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nX-Huge: " + b"x" * (20 * MIB) + b"\r\n\r\n",
    "a huge address": b"GET /api/v1/tasks?q=" + b"x" * (20 * MIB) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a million headers": b"GET /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: b\r\n" * 1_000_000 + b"\r\n",
    "a length that no number can be": request(b"").replace(b"Content-Length: 0", b"Content-Length: 99999999999999999999"),
    "a length that is a lie": request(b"").replace(b"Content-Length: 0", b"Content-Length: 999999999999"),
    "smuggling by two lengths": b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 30\r\n\r\n{}",
    "smuggling by length and chunks": b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk that is too large to be": b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n"
    + JSON
    + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_malicious_head_is_refused_and_breaks_no_answer(service: Service, name: str) -> None:
    before = service.memory()
    said = service.say(HEADERS[name])
    head = said.partition(b"\r\n\r\n")[0].lower()
    assert status(said) is None or 400 <= (status(said) or 0) < 500 or name == "CRLF in a header's value", said[:200]
    assert b"\r\nset-cookie" not in head, "nothing of the request becomes a header of the answer"
    assert service.memory() - before < ROOM
    assert service.goes_on()


def endless_chunks() -> Iterator[bytes]:
    yield b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
    for _ in range(2000):
        yield b"10000\r\n" + b" " * 65536 + b"\r\n"


def endless_tiny_chunks() -> Iterator[bytes]:
    yield b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
    for _ in range(2000):
        yield b"1\r\n \r\n" * 10_000


def endless_trailers() -> Iterator[bytes]:
    yield b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    for _ in range(2000):
        yield b"X-Trailer: a\r\n" * 5000


@pytest.mark.parametrize("endless", [endless_chunks, endless_tiny_chunks, endless_trailers])
def test_what_never_ends_is_cut_off_with_memory_bounded(service: Service, endless: Callable[[], Iterator[bytes]]) -> None:
    before, sent = service.memory(), 0
    with service.connect() as connection:
        try:
            for part in endless():
                connection.sendall(part)
                sent += len(part)
        except OSError:
            pass
        said = read(connection)
    assert status(said) is None or 400 <= (status(said) or 0) < 500
    assert sent < 100 * MIB, "it was taken as long as it came"
    assert service.memory() - before < ROOM
    assert service.goes_on()


def test_three_hundred_slow_clients_hold_up_nobody(service: Service) -> None:
    """Slowloris, by headers and by bodies: others are served meanwhile. That each is cut off in time is in test_limits.py."""
    before = service.memory()
    slow = []
    try:
        for number in range(300):
            connection = service.connect()
            slow.append(connection)
            if number % 2:
                connection.sendall(b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n" + JSON + b"Content-Length: 1000\r\n\r\n{")
            else:
                connection.sendall(b"GET /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        for _ in range(10):
            assert service.goes_on()
        for connection in slow:
            try:
                connection.sendall(b"a")
            except OSError:
                # Its time was over already.
                continue
        assert service.goes_on()
        # Headers may take 10 seconds.
        assert status(read(slow[0])) in (408, None)
        assert service.memory() - before < ROOM
    finally:
        for connection in slow:
            connection.close()
    assert service.goes_on()
