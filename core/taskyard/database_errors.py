"""Whose fault is a database error? The one place that decides it, for both drivers, raw or wrapped by SQLAlchemy.

PostgreSQL says by SQLSTATE when *this row's data* is wrong: trying again can't help then. Every other error is an outage: the server is
away, full, read-only or being upgraded, a password or a right is missing, a pooler stands in between. The work is kept and tried again, and
a client is answered 503. That includes mistakes of ours, such as a syntax error: the next release cures them, and until then nothing
accepted is lost. They are logged as errors (see :func:`is_mistake`).

A unique violation blames the data only where the constraint is about values of the caller (:data:`CALLERS_KEYS`). Every other key of ours is drawn
from a sequence or made at random, so a duplicate of it is the database's fault: its sequence is behind, as after a restore or a switchover.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from sqlalchemy import URL, ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from taskyard.errors import TaskyardError, Unavailable
from taskyard.masking import mask_url

log = structlog.get_logger(__name__)
#: Seconds in which an outage is logged once.
QUIET: Final = 60.0
#: Classes of SQLSTATE that blame the data: data exception, integrity violation, and program limit exceeded, which is the size or the depth
#: of a value.
DATA_CLASSES: Final = ("22", "23", "54")
#: The index that keeps one live task for each unique_key.
UNIQUE_KEY: Final = "uq_tasks_unique_key"
#: Unique constraints on values that a caller chooses.
CALLERS_KEYS: Final = frozenset({UNIQUE_KEY, "pk_idempotency_keys"})
_DUPLICATE: Final = "23505"
#: Errors that only a statement of ours, or a schema that isn't ours, can cause.
_MISTAKES: Final = ("42", "0A", "21", "2F", "34", "XX")
#: Missing rights are the operator's: a sentence says enough.
NO_RIGHTS: Final = "42501"
_TOO_LONG: Final = "57014"
#: A lock that was not to be had in time.
LOCKED: Final = "55P03"
#: Classes and states of a server that is not there for this login, rather than one that refuses a statement.
_UNREACHABLE: Final = ("08", "28", "3D", "57P", "53300")
_DRIVERS: Final = frozenset({"asyncpg", "psycopg"})
#: A transaction that PostgreSQL has rolled back because of others.
_UNDONE: Final = ("40001", "40P01")
#: A plan that was cached before its table was altered, and is of no use any more: the function of PostgreSQL that refuses it, and words that no server
#: translates, those of asyncpg and those of an internal error.
_REFUSES_STALE_PLANS: Final = "RevalidateCachedQuery"
_STALE_PLANS: Final = ("cached statement plan is invalid", "cache lookup failed")
_READ_ONLY: Final = "25006"
_NO_SUCH_STATEMENT: Final = "26000"
#: What our primary keys' names begin with.
_PRIMARY: Final = "pk_"
_SEQUENCES: Final = " (its sequence is probably behind, as after a restore or a switchover: `taskyard doctor` names the setval to run)"
#: Characters of a driver's message that are shown.
_MOST_WORDS: Final = 500


class Discarded(Exception):
    """PostgreSQL said that it inserted a row, and left it out: see taskyard.interference. Raise it in the transaction, which is rolled back then."""


def sqlstate_of(error: BaseException) -> str | None:
    """The SQLSTATE that PostgreSQL gave; None if the error was raised by the client's side."""
    states = (getattr(one, "sqlstate", None) for one in _causes(error))
    return next((state for state in states if isinstance(state, str)), None)


def is_bad_data(error: BaseException) -> bool:
    """Is this row's data wrong, so that trying again can't help?"""
    if not _is_of_database(error):
        return False
    if state := sqlstate_of(error):
        return state.startswith(DATA_CLASSES) and _blameless_duplicate(error) is None
    # The driver could not write a value in PostgreSQL's form: too large a number, or U+0000 in a text.
    return any(_driver_of(one) is not None and type(one).__name__ == "DataError" for one in _causes(error))


def is_outage(error: BaseException) -> bool:
    """Is this an error of the database that is not :func:`is_bad_data`? What was to be written is kept, and tried again."""
    if isinstance(error, PoolTimeout | PendingRollbackError | OSError | Discarded):
        return True
    return _is_of_database(error) and not is_bad_data(error)


def was_rolled_back(error: BaseException) -> bool:
    """Did the server answer that it did not do it? Class 08 and 57P are a connection's end, which tells nothing."""
    state = sqlstate_of(error)
    return isinstance(error, Discarded) or (state is not None and not state.startswith(("08", "57P")))


def is_mistake(error: BaseException) -> bool:
    """Is this outage most likely a fault of a statement of ours, or of the schema, rather than of the server?"""
    state = sqlstate_of(error) or ""
    return isinstance(error, Discarded) or (state.startswith(_MISTAKES) and state != NO_RIGHTS) or _blameless_duplicate(error) is not None


def duplicate_of(error: BaseException) -> str | None:
    """The unique constraint that an error says is violated; None if it says nothing of the kind, or does not name it."""
    if sqlstate_of(error) != _DUPLICATE:
        return None
    # psycopg keeps it in `diag`, asyncpg on the error itself.
    names = (_said(one, "constraint_name") or getattr(one, "constraint_name", None) for one in _causes(error))
    return next((name for name in names if isinstance(name, str)), None)


def is_undone(error: BaseException) -> bool:
    """Did PostgreSQL do nothing, for a reason that another try does not meet? See :mod:`taskyard.retrying`."""
    return is_outage(error) and (sqlstate_of(error) in _UNDONE or _is_stale_plan(error))


def drop_useless(context: ExceptionContext) -> None:
    """A listener for SQLAlchemy's ``handle_error``: connections that only ever fail from now on leave the pool.

    A server that has become a standby refuses writes for good, and its clients must connect anew to find the primary. A session without its
    prepared statements, or with stale plans, fails at each of them.
    """
    error = context.original_exception
    if sqlstate_of(error) in (_READ_ONLY, _NO_SUCH_STATEMENT):
        context.is_disconnect = True
    elif _is_stale_plan(error):
        context.is_disconnect = True
        # asyncpg's dialect then forgets all plans by itself, and of psycopg's connections each finds out.
        context.invalidate_pool_on_disconnect = False


def driver_words(error: BaseException) -> str:
    """The driver's own words on one line, with the passwords of URLs masked, and what to do where the words alone don't tell. They name hosts and
    users: for operators, not for clients.
    """
    cause = _speaking(list(_causes(error)))
    # The server's sentence alone: what follows it shows values, and the statement.
    words = " ".join((_said(cause, "message_primary") or str(cause).split("\nDETAIL:", 1)[0]).split())
    said = mask_url(words[:_MOST_WORDS]) or type(cause).__name__
    return f"{said}{_SEQUENCES}" if (_blameless_duplicate(error) or "").startswith(_PRIMARY) else said


def _speaking(causes: list[BaseException]) -> BaseException:
    """The one of these causes whose words help: a database's innermost one, else the outermost that is not an error of ours."""
    if any(map(_is_of_database, causes)):
        return causes[-1]
    return next((cause for cause in causes if not isinstance(cause, TaskyardError)), causes[-1])


class OutageLog:
    """Logs the driver's words of each outage once in :data:`QUIET` seconds, however many meet it."""

    def __init__(self) -> None:
        self._quiet_until: dict[str, float] = {}

    def note(self, error: BaseException) -> None:
        """An outage was met."""
        words, now = driver_words(error), time.monotonic()
        if now < self._quiet_until.get(words, 0.0):
            return
        # Words may name what differs each time, such as a process id.
        self._quiet_until = {known: until for known, until in self._quiet_until.items() if until > now} | {words: now + QUIET}
        if is_mistake(error):
            log.error("database.refused", error=words, sqlstate=sqlstate_of(error), exc_info=error)
        else:
            log.warning("database.unavailable", error=words, sqlstate=sqlstate_of(error))


@contextmanager
def outages_named(at: URL | str | None = None, noted: OutageLog | None = None) -> Iterator[None]:
    """Turn an outage into :class:`Unavailable`, which tells clients nothing of the installation.

    With ``at``, its message names the host and has the driver's own words: for operators, not for clients. With ``noted``, it is logged.
    """
    try:
        yield
    except Exception as error:
        if not is_outage(error):
            raise
        if noted:
            noted.note(error)
        raise Unavailable(f"{_sentence(error)}{f' {_place(make_url(at))}: {driver_words(error)}' if at else ''}") from error


def _sentence(error: BaseException) -> str:
    state = sqlstate_of(error)
    if state == _TOO_LONG:
        return "The database took too long for this, and was stopped. A list, or an action, with more filters is quicker."
    if state == LOCKED:
        return "The database can't do this now: what it needs is locked."
    if not isinstance(error, Discarded) and (state is None or state.startswith(_UNREACHABLE)):
        return "The database can't be reached now."
    return "The database can't do this now."


def _blameless_duplicate(error: BaseException) -> str | None:
    """The unique constraint that is violated and that no caller's value can violate."""
    name = duplicate_of(error)
    return None if name in CALLERS_KEYS else name


def _is_stale_plan(error: BaseException) -> bool:
    return any(_said(one, "source_function") == _REFUSES_STALE_PLANS or any(words in str(one) for words in _STALE_PLANS) for one in _causes(error))


def _said(error: BaseException, field: str) -> str | None:
    """A field of the server's answer, by psycopg's name for it; None if the error is not psycopg's, or no answer of a server."""
    found = getattr(getattr(error, "diag", None), field, None)
    return found if isinstance(found, str) else None


def _place(url: URL) -> str:
    return f"Host {url.host or url.query.get('host', 'localhost')}, port {url.port or url.query.get('port', 5432)}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it stands for: SQLAlchemy wraps the drivers' errors, and asyncpg's twice."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = getattr(cause, "orig", None) or cause.__cause__


def _is_of_database(error: BaseException) -> bool:
    return isinstance(error, DBAPIError) or _driver_of(error) is not None


def _driver_of(error: BaseException) -> str | None:
    """The driver that raised it. By name: asyncpg is not installed everywhere."""
    homes = (cls.__module__.partition(".")[0] for cls in type(error).__mro__)
    return next((home for home in homes if home in _DRIVERS), None)
