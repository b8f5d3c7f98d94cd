"""Access keys: made once, shown once, kept as a hash. Each belongs to one namespace.

A key reads ``ty_<id>_<secret>``. The id finds its row; the secret is 256 random bits, so a plain SHA-256 of it can't be guessed
back, and a slow hash would only slow us down.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Row, func, insert, or_, select, update

from taskyard import ids
from taskyard.errors import InvalidInput, NotFound
from taskyard.spelling import did_you_mean
from taskyard.tables import keys

Scope = Literal["tasks:read", "tasks:write", "metrics:read", "all-namespaces", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "ty_"
#: How exactly it is known when a key was last used: a busy key would be a row that is written without end.
LAST_USED_WITHIN = timedelta(minutes=1)

_KEY = re.compile(rf"{PREFIX}([0-9a-f]{{16}})_([A-Za-z0-9_-]{{43}})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@/-]{0,99}")
_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NOBODY = hashlib.sha256(b"nobody has this secret").digest()
_SHOWN = (keys.c.id, keys.c.name, keys.c.namespace, keys.c.scopes, keys.c.created_at, keys.c.expires_at, keys.c.last_used_at, keys.c.revoked_at)
_IS_LIVE = (keys.c.revoked_at.is_(None)) & or_(keys.c.expires_at.is_(None), keys.c.expires_at > func.now())


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a key speaks for. ``expires_in`` is in seconds from when it was looked up; None is never."""

    key_id: str
    name: str
    namespace: str
    scopes: frozenset[str]
    expires_in: float | None = None

    def may(self, scope: Scope) -> bool:
        """Does a scope of this key open what ``scope`` opens? ``admin`` opens all, and ``all-namespaces`` what ``tasks:read`` does."""
        return bool(self.scopes & {scope, "admin"}) or (scope == "tasks:read" and self.reads_all)

    @property
    def reads_all(self) -> bool:
        """Does it read the tasks of every namespace? ``admin`` alone does not."""
        return "all-namespaces" in self.scopes


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made. Nobody can read ``secret``, the whole key as callers send it, ever again."""

    secret: str
    row: Row[Any]


def create(
    connection: Connection, name: str, *, namespace: str = "default", scopes: Sequence[str] = ("tasks:read", "tasks:write"), lasts: timedelta | None = None
) -> NewKey:
    """Make a key. Without ``lasts`` it never expires.

    Raises:
        InvalidInput: a name, namespace or scope is not as expected, or a live key of the namespace has this name.
    """
    _check(name, namespace, scopes)
    ids.make(connection)
    # Two that make the same name at once would both find it free.
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"taskyard keys {namespace} {name}"))))
    if connection.execute(select(keys.c.id).where(keys.c.name == name, keys.c.namespace == namespace, _IS_LIVE)).first():
        raise InvalidInput(f"The namespace {namespace!r} has a live key named {name!r}. Take another name, or `taskyard keys rotate` that one.")
    return _insert(connection, name, namespace, list(dict.fromkeys(scopes)), lasts)


def _check(name: str, namespace: str, scopes: Sequence[str]) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"A key can't be named {name!r}: expected up to 100 letters, digits, spaces and . _ @ / -, beginning with a letter or a digit.")
    if not _NAMESPACE.fullmatch(namespace):
        raise InvalidInput(f"{namespace!r} can't be a namespace: expected up to 63 small letters, digits, _ and -, beginning with a letter or a digit.")
    if not scopes:
        raise InvalidInput(f"A key needs at least one scope: {', '.join(SCOPES)}.")
    for scope in scopes:
        if scope not in SCOPES:
            raise InvalidInput(f"{scope!r} is no scope; there are {', '.join(SCOPES)}.{did_you_mean(scope, SCOPES)}")


def _insert(connection: Connection, name: str, namespace: str, scopes: list[str], lasts: timedelta | None) -> NewKey:
    id_, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    values = {"id": id_, "name": name, "namespace": namespace, "scopes": scopes, "hash": _hash(secret)}
    expires = func.now() + lasts if lasts is not None else None
    row = connection.execute(insert(keys).values(**values, expires_at=expires).returning(*_SHOWN)).one()
    return NewKey(f"{PREFIX}{id_}_{secret}", row)


def listed(connection: Connection, namespace: str | None = None) -> Sequence[Row[Any]]:
    """Keys by age, dead ones too, of one namespace or of all. None shows its secret, nor its hash."""
    query = select(*_SHOWN, _IS_LIVE.label("live")).order_by(keys.c.created_at, keys.c.id)
    return connection.execute(query if namespace is None else query.where(keys.c.namespace == namespace)).all()


def rotate(connection: Connection, which: str, *, overlap: timedelta, lasts: timedelta | None = None, namespace: str = "default") -> NewKey:
    """Make another key like a live one. The old one works for ``overlap`` more, or until its own end, if that is sooner.

    ``lasts`` is for the new one; unset, it gets as long as the old one had from its making, or for ever.
    Raises NotFound as :func:`revoke`.
    """
    old = _live(connection, which, namespace)
    newer = select(keys.c.id).where(keys.c.name == old.name, keys.c.namespace == old.namespace, keys.c.created_at > old.created_at, _IS_LIVE)
    if successor := connection.execute(newer).scalar():
        raise InvalidInput(f"The key {old.id} is being rotated out: {successor} took its place.")
    connection.execute(update(keys).where(keys.c.id == old.id).values(expires_at=func.least(keys.c.expires_at, func.now() + overlap)))
    if lasts is None and old.expires_at is not None:
        lasts = old.expires_at - old.created_at
    return _insert(connection, old.name, old.namespace, old.scopes, lasts)


def revoke(connection: Connection, which: str, *, namespace: str = "default") -> Row[Any]:
    """End a key now; ``which`` is its id, or its name in a namespace. Web processes take note within :data:`taskyard_api.access.FRESH`.

    Raises:
        NotFound: no live key is called so; names the nearest one.
        InvalidInput: two are, for one is being rotated out: say which by its id.
    """
    row = _live(connection, which, namespace)
    revoked: Row[Any] = connection.execute(update(keys).where(keys.c.id == row.id).values(revoked_at=func.now()).returning(*_SHOWN)).one()
    return revoked


def _live(connection: Connection, which: str, namespace: str) -> Any:
    # Locked: who ends or rotates one of them at the same time comes first, or finds what this does.
    known = connection.execute(select(*_SHOWN).where(_IS_LIVE).order_by(keys.c.id).with_for_update()).all()
    if found := [row for row in known if row.id == which.removeprefix(PREFIX)]:
        return found[0]
    named = [row for row in known if row.name == which and row.namespace == namespace]
    if len(named) > 1:
        raise InvalidInput(f"{len(named)} live keys are named {which!r}. Say which by its id: {', '.join(row.id for row in named)}.")
    if not named:
        raise NotFound(f"No live key {which!r} is known in {namespace!r}.{did_you_mean(which, [row.name for row in known if row.namespace == namespace])}")
    return named[0]


# --- by the web process, for each key that it does not remember ---------------------------------------------------------


def id_of(key: str) -> str | None:
    """The id in a key, which may be shown and logged; None if it is not shaped like a key."""
    return matched[1] if (matched := _KEY.fullmatch(key)) else None


def is_shaped(key: str) -> bool:
    """Does it look like a key of ours? What does not is nobody's."""
    return _KEY.fullmatch(key) is not None


def look_up_all(connection: Connection, shown: Sequence[str]) -> dict[str, Caller]:
    """Whom keys speak for. Left out are those that are none of ours, have expired or were revoked.

    Takes the same steps for an id that exists as for one that does not (compared by :func:`hmac.compare_digest`).
    """
    parts = {key: matched.groups() for key in shown if (matched := _KEY.fullmatch(key))}
    ids = sorted({id_ for id_, _ in parts.values()})
    seconds = func.extract("epoch", keys.c.expires_at - func.now()).label("seconds")
    used = (func.coalesce(keys.c.last_used_at, keys.c.created_at - LAST_USED_WITHIN) <= func.now() - LAST_USED_WITHIN).label("note_use")
    query = select(keys.c.id, keys.c.name, keys.c.namespace, keys.c.scopes, keys.c.hash, seconds, used).where(keys.c.id.in_(ids), _IS_LIVE)
    rows = {row.id: row for row in connection.execute(query)}
    found = {key: rows.get(id_) for key, (id_, secret) in parts.items() if _is_its(rows.get(id_), secret)}
    _note_use(connection, sorted({row.id for row in found.values() if row is not None and row.note_use}))
    return {key: _caller(row) for key, row in found.items() if row is not None}


def _is_its(row: Row[Any] | None, secret: str) -> bool:
    return hmac.compare_digest(row.hash if row else _NOBODY, _hash(secret)) and row is not None


def _caller(row: Row[Any]) -> Caller:
    return Caller(row.id, row.name, row.namespace, frozenset(row.scopes), None if row.seconds is None else float(row.seconds))


def _note_use(connection: Connection, ids: Sequence[str]) -> None:
    """Another process that holds a row notes the same: nobody waits for it."""
    if ids:
        free = (
            select(keys.c.id)
            .where(keys.c.id.in_(ids))
            .order_by(keys.c.id)
            .with_for_update(skip_locked=True)
            .cte()
            .prefix_with("MATERIALIZED", dialect="postgresql")
        )
        connection.execute(update(keys).where(keys.c.id.in_(select(free.c.id))).values(last_used_at=func.now()))


def any_live(connection: Connection) -> bool:
    """Is there a key that would be let in?"""
    return connection.execute(select(keys.c.id).where(_IS_LIVE).limit(1)).first() is not None


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
