"""Where code failed, and how it got there: the place for a sentence, and a traceback that people can read.

A traceback shows the frames of plugins and folds those of Taskyard, of installed libraries and of Python itself. It has a readable size: a deep
recursion, a long chain of causes or a message of megabytes never push the plugin's own frames out of it.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import site
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

from taskyard import logs
from taskyard.masking import CUT, masked_start, text_of
from taskyard.storable import storable_text

#: Characters of a traceback.
MAX_TRACEBACK = 8000
#: Our own rooms. A plugin is never a part of them.
_FRAMEWORK = frozenset({"taskyard", "taskyard_api", "taskyard_migrations", "taskyard_pytest", "taskyard_worker"})
#: Folders of installed libraries, also of an environment that is not this interpreter's: on PYTHONPATH, or beneath a virtual environment.
_SITES = {"site-packages", "dist-packages"}
#: Top-level packages of plugins. They may be installed among the libraries, and are shown all the same.
_plugins: set[str] = set()

_CAUSE = "\nThe above exception was the direct cause of the following exception:\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n"


@dataclass(frozen=True, slots=True)
class _Form:
    """How much is shown: frames of one traceback, exceptions of a chain, members of a group, characters of a message."""

    frames: int
    chain: int
    members: int
    text: int


#: From the most that is shown to the least: the first that is short enough is taken.
_FORMS = (_Form(20, 6, 6, 2000), _Form(8, 3, 3, 500), _Form(4, 2, 2, 200))
#: Groups inside of groups whose members are shown.
_DEPTH = 3


def show_frames_of(module: str) -> None:
    """From now on the frames of this module's top-level package count as a plugin's own, wherever it is installed."""
    _plugins.add(module.partition(".")[0])


def place_of(error: BaseException) -> str | None:
    """Where an exception comes from: ``/path/words.py:12, in count``, the innermost place in a plugin; None if no plugin's code took part.

    Of a SyntaxError it is the place in the source that can't be read; of a group that of its first member.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno and not error.filename.startswith("<"):
        return f"{error.filename}:{error.lineno}"
    if isinstance(error, BaseExceptionGroup) and (place := place_of(error.exceptions[0])):
        return place
    if own := [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_own(frame)]:
        frame, line = own[-1]
        return f"{frame.f_code.co_filename}:{line}, in {frame.f_code.co_name}"
    cause = _cause_of(error)
    return place_of(cause) if cause is not None else None


def declared_at(thing: Any) -> str | None:
    """Where a function is declared, or what a partial or another callable object calls, as :func:`place_of` tells it; None if it is not in Python."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    code = getattr(inspect.unwrap(thing), "__code__", None) if callable(thing) else None
    if code is None and callable(thing) and not isinstance(thing, type):
        code = getattr(inspect.unwrap(type(thing).__call__), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}, in {code.co_name}" if isinstance(code, CodeType) else None


def readable(error: BaseException, most: int = MAX_TRACEBACK) -> str:
    """A traceback of at most ``most`` characters, without secrets, as PostgreSQL takes it. The error itself comes last, as in Python's own."""
    for form in _FORMS:
        text = storable_text(logs.clean("\n".join(_lines(error, form))))
        if len(text) <= most:
            return text
    # The end tells most; the beginning has the first cause.
    return f"{text[: most // 4]}\n{CUT}\n{text[-(most - most // 4 - 3) :]}"


def readable_stack(innermost: FrameType) -> str:
    """Where running code stands, and how it got there, as :func:`readable` shows it: the plugin's own frames, and a line for each run of others."""
    stack: TracebackType | None = None
    for frame, line in traceback.walk_stack(innermost):
        stack = TracebackType(stack, frame, frame.f_lasti, line)
    assert stack is not None
    return "\n".join(_frames(stack, _FORMS[0]))


def _lines(error: BaseException, form: _Form, depth: int = 0) -> Iterator[str]:
    chain = _chain(error)
    if len(chain) > form.chain:
        yield f"({len(chain) - form.chain} earlier exceptions are left out)"
    for one, link in reversed(chain[: form.chain]):
        if one.__traceback__ is not None and (frames := list(_frames(one.__traceback__, form))):
            yield from ("Traceback (most recent call last):", *frames)
        yield _shortened(_message(one), form)
        if isinstance(one, BaseExceptionGroup):
            yield from _members(one, form, depth)
        if link:
            yield link


def _chain(error: BaseException) -> list[tuple[BaseException, str]]:
    """The exception and its causes, the last one first; of each, what is said between it and the exception that followed."""
    chain, seen, link = [(error, "")], {id(error)}, ""
    while (cause := _cause_of(error)) is not None and id(cause) not in seen:
        link = _CAUSE if cause is error.__cause__ else _CONTEXT
        seen.add(id(cause))
        chain.append((cause, link))
        error = cause
    return chain


def _cause_of(error: BaseException) -> BaseException | None:
    return error.__cause__ if error.__cause__ is not None or error.__suppress_context__ else error.__context__


def _members(group: BaseExceptionGroup[Any], form: _Form, depth: int) -> Iterator[str]:
    """The exceptions of a group, each set off by a bar."""
    if depth == _DEPTH:
        return
    for number, member in enumerate(group.exceptions[: form.members], 1):
        yield f"  +-- {number} of {len(group.exceptions)}"
        yield from (f"  | {line}".rstrip() for text in _lines(member, form, depth + 1) for line in text.splitlines())
    if len(group.exceptions) > form.members:
        yield f"  +-- {len(group.exceptions) - form.members} more are left out"


def _message(error: BaseException) -> str:
    """The class and the text, as Python tells them; with the line and the caret of a SyntaxError, hints for mistyped names, and notes.

    Python's function looks through all causes and members as well, of which there may be very many.
    """
    if isinstance(error, SyntaxError) or not (isinstance(error, BaseExceptionGroup) or error.__cause__ or error.__context__):
        return "".join(traceback.format_exception_only(type(error), error)).rstrip("\n")
    module, name = type(error).__module__, type(error).__qualname__
    told = name if module in ("builtins", "__main__") else f"{module}.{name}"
    notes = [text_of(note) for note in getattr(error, "__notes__", None) or ()]
    return "\n".join([f"{told}: {text_of(error)}".removesuffix(": "), *notes])


def _shortened(text: str, form: _Form) -> str:
    return masked_start(text, form.text, logs.clean, logs.longest_secret())


def _frames(trace: TracebackType, form: _Form) -> Iterator[str]:
    """The plugin's own frames with their source, and a line for each run of other frames. Those before the first own one go without a word."""
    runs = [(own, list(steps)) for own, steps in itertools.groupby(_steps(trace), lambda step: _is_own(step.tb_frame))]
    if len(runs) > 1 and not runs[0][0]:
        del runs[0]
    shown = [entry for own, steps in runs for entry in (steps if own else [steps])]
    if (more := len(shown) - form.frames) > 0:
        first = form.frames // 4
        shown[first : first + more] = []
    for number, entry in enumerate(shown):
        if more > 0 and number == form.frames // 4:
            yield f"  ({more} calls are left out)"
        yield _folded(entry) if isinstance(entry, list) else _shortened(_frame(entry), form)


def _steps(trace: TracebackType) -> Iterator[TracebackType]:
    step: TracebackType | None = trace
    while step is not None:
        yield step
        step = step.tb_next


def _frame(step: TracebackType) -> str:
    """One frame as Python writes it, with carets under what was evaluated."""
    return "".join(traceback.format_list(traceback.extract_tb(step, limit=1))).rstrip("\n")


def _folded(steps: list[TracebackType]) -> str:
    last = steps[-1]
    modules = dict.fromkeys(_top(step.tb_frame) for step in steps)
    place = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}, in {last.tb_frame.f_code.co_name}"
    return f"  ({len(steps)} {'frame' if len(steps) == 1 else 'frames'} of {', '.join(modules)}, down to {place})"


def _top(frame: FrameType) -> str:
    # The package first: a module that was started by `python -m` is called "__main__".
    return str(frame.f_globals.get("__package__") or frame.f_globals.get("__name__") or "?").partition(".")[0]


def _is_own(frame: FrameType) -> bool:
    top = _top(frame)
    return top in _plugins or (top not in _FRAMEWORK and not _is_installed(frame.f_code.co_filename))


@functools.lru_cache(maxsize=4096)
def _is_installed(filename: str) -> bool:
    """Is this a file of Python itself or of an installed library, or no file at all?"""
    return filename.startswith("<") or not _SITES.isdisjoint(Path(filename).parts) or any(filename.startswith(folder) for folder in _library_folders())


@functools.cache
def _library_folders() -> tuple[str, ...]:
    found: Iterable[str] = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    found = [*found, *site.getsitepackages(), site.getusersitepackages()]
    return tuple({os.path.join(folder, "") for path in found for folder in (path, os.path.realpath(path))})  # noqa: PTH118  # frames name files by strings
