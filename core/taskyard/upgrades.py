"""Stored payloads, read by the handler of today: one of an older shape passes through the handler's ``upgrade``.

A payload is stored as it was sent, and may wait for longer than a version of its plugin lives. So a worker reads it by the model that it
has now. Where that refuses it, and the handler declares an ``upgrade``, that function gets the JSON value as it was stored and answers one of
today's shape, which must validate. It is called in the process that runs the task, each time that the task is run; the row keeps what
was sent. A payload that validates is never upgraded.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import ValidationError

from taskyard import logs, tracebacks
from taskyard.errors import Outcome, TaskFailed
from taskyard.handlers import Handler, Upgrade
from taskyard.storable import from_json, storable_text, to_json
from taskyard.validation import problems_of

P = TypeVar("P")
#: Why a task has failed whose payload could not be brought into today's shape: the ``code`` of its error.
UPGRADE_FAILED = "upgrade-failed"
#: The same where there is no upgrade. More attempts would read the same payload by the same model.
INVALID_PAYLOAD = "invalid-payload"


def read_payload(handler: Handler[P, object], text: str) -> P:
    """A stored payload (JSON text) as the handler's function takes it.

    Raises:
        TaskFailed: it is not valid, and there is no upgrade, or that raised, or made of it what is not valid either. It says where.
        Outcome: the upgrade said itself how the run ends.
    """
    try:
        return handler.payload.validate_json(text)
    except Exception as error:
        # A validator may raise anything when it meets a shape that its author has left behind.
        if handler.upgrade is None:
            raise _misfit(f"The stored payload does not fit {handler.type} as this worker has it", INVALID_PAYLOAD, error, text) from error
    return _validated(handler, _upgraded(handler.type, handler.upgrade, text))


def _upgraded(type_: str, upgrade: Upgrade, text: str) -> str:
    try:
        return to_json(upgrade(from_json(text)))
    except Outcome:
        raise
    except (Exception, SystemExit) as error:
        place = {"where": where} if (where := tracebacks.place_of(error)) else {}
        message = f"The stored payload is of an older shape, and the upgrade of {type_} raised {type(error).__name__}: {storable_text(error)}"
        raise TaskFailed(logs.clean(message), code=UPGRADE_FAILED, **place, traceback=tracebacks.readable(error)) from error


def _validated(handler: Handler[P, object], text: str) -> P:
    try:
        return handler.payload.validate_json(text)
    except Exception as error:
        what = f"The stored payload is of an older shape, and what the upgrade of {handler.type} made of it is not valid"
        raise _misfit(what, UPGRADE_FAILED, error, text) from error


def _misfit(what: str, code: str, error: Exception, text: str) -> TaskFailed:
    """A failure that names each place of the payload that is wrong. Its values are left out: they may be secrets."""
    if isinstance(error, ValidationError):
        problems = [[pointer, storable_text(told)] for pointer, told in problems_of(error, from_json(text))]
    else:
        problems = [["", f"its validator raised {type(error).__name__}"]]
    pointer, told = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return TaskFailed(f"{what}: {pointer or 'the whole'}: {told}{more}", code=code, problems=problems)
