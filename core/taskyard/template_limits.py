"""How much a template may make: characters, members, numbers, and processor time."""

from __future__ import annotations

import dataclasses
import math
from contextvars import ContextVar
from time import thread_time
from types import MethodType
from typing import Any

from jinja2.exceptions import SecurityError

from taskyard.notifiers import Event, TaskInfo
from taskyard.templates import MAX_MESSAGE

#: Seconds of processor time that making one message may take.
MAX_SECONDS = 1.0
#: Members of a list that a template makes.
MAX_LIST = 1_000
#: Whole numbers that a template may write or make, either sign.
MAX_INTEGER = 2**63
#: Characters that a method of a text takes as an argument: some compare each of them with each character of the text.
MAX_ARGUMENT = 200

#: When the message that is being made has to be done, in the processor time of its thread.
deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


def check_time() -> None:
    """Is there time left?

    Raises:
        SecurityError: there is none.
    """
    if thread_time() > deadline.get():
        raise SecurityError(f"it takes longer than {MAX_SECONDS:g} s")


def bounded(value: Any) -> Any:
    """The value.

    Raises:
        SecurityError: it is too long or too large, or there is no time left.
    """
    check_time()
    if isinstance(value, list | tuple | dict) and len(value) > MAX_LIST:
        raise SecurityError(f"a list of more than {MAX_LIST} members")
    if room_after(value, MAX_MESSAGE) < 0:
        raise SecurityError(f"a text of more than {MAX_MESSAGE} characters, a list with as many, or a number of more than 19 digits")
    return value


def room_after(value: Any, room: int) -> int:
    """The room that is left after a value's characters and members, all the way down; negative if there is none, or if it holds a huge number. A list
    that holds one long text a hundred times takes a hundred times its room.
    """
    left = [value]
    while left and room >= 0:
        part = left.pop()
        if isinstance(part, str | bytes):
            room -= len(part)
        elif isinstance(part, dict | list | tuple):
            room -= len(part) + 1
            left += [*part, *part.values()] if isinstance(part, dict) else part
        elif isinstance(part, Event | TaskInfo):
            # Its text holds all that it holds.
            left += [getattr(part, field.name) for field in dataclasses.fields(part)]
        elif isinstance(part, MethodType):
            left.append(part.__self__)
        elif isinstance(part, int) and abs(part) > MAX_INTEGER:
            return -1
        else:
            room -= 1
    return room
