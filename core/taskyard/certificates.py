"""Certificates that ``DATABASE_URL`` names, for both drivers."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from taskyard.errors import ConfigurationError
from taskyard.postgres_url import PostgresUrl


def check_certificates(url: PostgresUrl) -> None:
    """Load what the URL names, once: a wrong file stops a role at its start, where it would fail at each connection.

    Raises:
        ConfigurationError: a file has no certificate or no key, or the key's password is wrong.
    """
    given = url.parameters
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in ("sslrootcert", "sslcrl"):
        if given.get(name) and given[name] != "system":
            try:
                context.load_verify_locations(cafile=given[name])
            except OSError as error:
                raise ConfigurationError(f"database.url: {name}: {given[name]}: expected certificates in PEM") from error
    if given.get("sslcert"):
        try:
            load_client_certificate(context, given)
        except OSError as error:
            raise ConfigurationError(f"database.url: sslcert: {given['sslcert']}: expected a certificate in PEM, and its key in sslkey") from error


def load_client_certificate(context: ssl.SSLContext, given: Mapping[str, str]) -> None:
    """Load the client's certificate and key into a context. Raises OSError."""
    context.load_cert_chain(given["sslcert"], keyfile=given.get("sslkey"), password=given.get("sslpassword", ""))
