"""What the environment says about HTTP: proxies and certificates. Its mistakes become sentences that name the variable."""

from __future__ import annotations

import os
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from taskyard.errors import ConfigurationError

_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def own_url(host: str, port: int) -> str:
    """The URL by which a program of this machine calls a service that listens on ``host`` and ``port``."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # told apart, not bound
    return f"http://{f'[{reached}]' if ':' in reached else reached}:{port}"


def open_directly(url: str, *, timeout: float) -> Any:
    """Open a URL of this machine as :func:`urllib.request.urlopen` does, past every proxy of the environment: none can reach our loopback."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=timeout)


@contextmanager
def environment_checked() -> Iterator[None]:
    """Name the variable where HTTPX can't use what the environment says about proxies or certificates.

    Raises:
        ConfigurationError: without a proxy's URL, which may hold a password.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(f"{_set(_PROXIES)}: a SOCKS proxy needs one more package: pip install 'httpx2[socks]'. Or unset the variable.") from error
    except (ssl.SSLError, OSError) as error:
        reason = "no certificates in it" if isinstance(error, ssl.SSLError) else (error.strerror or "failed").lower()
        raise ConfigurationError(f"{_set(_CERTIFICATES)}={os.environ.get(_set(_CERTIFICATES), '')}: can't load certificates: {reason}") from error
    except (ValueError, _invalid_url()) as error:
        raise ConfigurationError(f"{_set(_PROXIES)}: expected the address of a proxy, such as http://proxy.example.com:3128") from error


def _set(names: tuple[str, ...]) -> str:
    """The first of these variables that is set, as it is spelled there."""
    return next((spelled for name in names for spelled in (name, name.lower()) if os.environ.get(spelled)), names[0])


def _invalid_url() -> type[Exception]:
    import httpx2  # Here, not above: `taskyard health` need not wait for it.

    return httpx2.InvalidURL
