"""TLS to the broker: its certificate and its name are always checked."""

from __future__ import annotations

import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from taskyard.errors import ConfigurationError
from taskyard.settings import BrokerSettings

_SECURE = ("amqps", "rediss")
_PORTS = {"amqps": 5671, "rediss": 6379}


def tls_options(settings: BrokerSettings, url: str) -> dict[str, Any] | None:
    """Celery's ``broker_use_ssl``; None where the broker is reached without TLS, or its URL alone says how.

    Raises:
        ConfigurationError: ``broker.ca_file`` can't be used, or is set for a URL without TLS.
    """
    scheme = urlsplit(url).scheme
    if settings.ca_file is not None:
        if scheme not in _SECURE:
            raise ConfigurationError(f"broker.ca_file is set, but broker.url is {scheme}://: expected amqps:// or rediss://")
        _context(settings)
    if scheme == "amqps":
        # Kombu puts a host's name where this is None, but it calls localhost 127.0.0.1. Of several hosts, it tries each by its own name.
        name = None if ";" in url else urlsplit(url).hostname
        return {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": name} | ({"ca_certs": str(settings.ca_file)} if settings.ca_file else {})
    if scheme == "rediss" and settings.ca_file:
        return {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": str(settings.ca_file), "ssl_check_hostname": True}
    return None


def check_certificate(settings: BrokerSettings, url: str) -> None:
    """Shake hands with the broker once. A broker that can't be reached is waited for later.

    Raises:
        ConfigurationError: its certificate is not to be trusted, or is for another name.
    """
    parts = urlsplit(url.split(";")[0])
    if parts.scheme != "amqps" or not parts.hostname:
        return
    place = (parts.hostname, parts.port or _PORTS[parts.scheme])
    try:
        with socket.create_connection(place, settings.confirm_timeout) as wire, _context(settings).wrap_socket(wire, server_hostname=parts.hostname):
            pass
    except ssl.SSLCertVerificationError as error:
        hint = "" if settings.ca_file else " Set broker.ca_file to the certificate of the authority that signed it, if that is your own."
        raise ConfigurationError(f"broker.url: the certificate of {place[0]}:{place[1]} is refused: {error.verify_message.rstrip('.')}.{hint}") from error
    except OSError:
        return


def _context(settings: BrokerSettings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except ssl.SSLError as error:
        raise ConfigurationError(f"broker.ca_file: {settings.ca_file}: expected certificates in PEM") from error
    except OSError as error:
        raise ConfigurationError(f"broker.ca_file: {settings.ca_file}: {(error.strerror or 'not readable').lower()}") from error
