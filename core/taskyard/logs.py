"""Logging: structlog and the standard library through one renderer, on standard error.

A role calls :func:`configure_role`: then all that its process says is a log line, also what nobody caught and, in the format
for programs, what something printed.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable, MutableMapping
from io import TextIOWrapper
from types import TracebackType
from typing import Any, TextIO

import structlog

from taskyard.masking import Hidden, escape_controls, mask, mask_url, masked_end, masked_start, secrets_in
from taskyard.printed import Lasting, Printed
from taskyard.settings import LogSettings, Settings

#: Libraries that log each request or each message at a level which is too low for everyday use.
_TALKATIVE = ("httpx2", "httpcore2", "asyncio", "amqp", "kombu", "sqlalchemy.engine", "alembic.runtime.plugins")
#: Libraries that bring handlers of their own.
_TAKEN_OVER = ("uvicorn", "uvicorn.error", "uvicorn.access", "celery", "celery.task", "alembic", "sqlalchemy")

#: Fields with lines of their own.
TRACES = ("exception", "stack")
#: Characters of one text that a line shows.
MAX_TEXT = 32_000

Event = MutableMapping[str, Any]
_log = structlog.get_logger(__name__)
#: Loggers of tasks: a hierarchy of their own, so that nothing that a plugin does to logging silences or unmasks what is kept of any task.
_tasks = logging.Manager(logging.RootLogger(logging.INFO))
#: The secrets of this process. Logging is one for the whole process, and so are they.
_hidden = Hidden()
#: Those that came with single tasks: a worker sees new ones for as long as it lives.
_hidden_lately = Hidden(most=200)


_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]
_FIRST: list[structlog.typing.Processor] = [structlog.stdlib.filter_by_level, structlog.stdlib.PositionalArgumentsFormatter(), *_SHARED]


def hide(secrets: Iterable[str]) -> None:
    """From now on no log line of this process shows these."""
    _hidden.add(secrets)


def clean(text: str) -> str:
    """The text without secrets: for what people are shown beside the log."""
    return _without_secrets(mask_url(text))


def hide_lately(secrets: Iterable[str]) -> None:
    """As :func:`hide`, until 200 others have come: for what came with a task."""
    _hidden_lately.add(secrets)


def _without_secrets(text: str) -> str:
    return _hidden_lately.clean(_hidden.clean(text))


def longest_secret() -> int:
    """Characters of the longest secret that :func:`clean` looks for."""
    return max(_hidden.longest, _hidden_lately.longest)


def _shown(text: str) -> str:
    """A text of a line: its beginning, without secrets."""
    return masked_start(text, MAX_TEXT, clean, longest_secret())


def _shown_trace(text: str) -> str:
    """A traceback: its end tells most."""
    return masked_end(text, MAX_TEXT, clean, longest_secret())


def configure_role(settings: Settings) -> None:
    """Make all that this process says log lines: for processes that serve, not for commands that answer somebody."""
    if settings.log.format == "console":
        _keep_open()
    configure(settings.log)
    hide(secrets_in(settings))
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable
    if settings.log.format == "json":
        sys.stdout, sys.stderr = Printed("stdout", logging.INFO, sys.stdout), Printed("stderr", logging.WARNING, sys.stderr)
        # Not by assignment: they are declared final. What is printed to them would be no JSON.
        for name in ("stdout", "stderr"):
            # A worker takes away the one by whose descriptor Celery writes.
            if getattr(sys, f"__{name}__") is not None:
                setattr(sys, f"__{name}__", getattr(sys, name))


def _keep_open() -> None:
    """Let nobody close the standard streams. Each line is written at once: a process that is killed, as a worker's children are, loses its buffer."""
    # Another class is somebody's own, such as pytest's.
    if type(sys.stdout) is TextIOWrapper:
        sys.stdout = Lasting(sys.stdout)
    if type(sys.stderr) is TextIOWrapper:
        sys.stderr = Lasting(sys.stderr)


def task_logger(name: str, fields: dict[str, Any], keep: structlog.typing.Processor) -> Any:
    """A logger of one task, with these fields. ``keep`` gets each line that the configured level lets through, before it is written to the log."""
    return structlog.wrap_logger(
        _tasks.getLogger(name),
        processors=[*_FIRST, keep, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
        **fields,
    )


def configure(settings: LogSettings) -> None:
    """Send every log line of this process to standard error, in the format that ``settings`` asks for."""
    structlog.configure(
        processors=[*_FIRST, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(_standard_error())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_render(settings)]
        )
    )
    _route(handler, settings.level.upper())
    own = logging.StreamHandler(_standard_error())
    own.setFormatter(handler.formatter)
    _tasks.root.handlers[:] = [own]
    _tasks.root.setLevel(settings.level.upper())


def _render(settings: LogSettings) -> list[structlog.typing.Processor]:
    first: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, _mask]
    if settings.format == "json":
        return [*first, structlog.processors.JSONRenderer(default=str)]
    return [*first, _escape, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"))]


def _route(handler: logging.Handler, level: str) -> None:
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _TAKEN_OVER:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    if level != "DEBUG":
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def _standard_error() -> TextIO:
    return sys.stderr.stream if isinstance(sys.stderr, Printed) else sys.stderr


def safe(event: Event) -> Event:
    """A line's fields as they may be shown: secrets masked, long texts cut, and objects that are no JSON as text."""
    event.pop("color_message", None)  # Uvicorn says the same twice, once with colours.
    return {_shown(key): mask(value, key, clean=_shown_trace if key in TRACES else _shown) for key, value in event.items()}


def _mask(logger: Any, method: str, event: Event) -> Event:
    return safe(event)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        _log.critical("process.failed", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        thread = args.thread.name if args.thread else None
        _log.error("thread.failed", thread=thread, exc_info=(args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback))


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    error = args.exc_value or args.exc_type()
    _log.error("error.not_raised", where=args.err_msg or repr(args.object), exc_info=(args.exc_type, error, args.exc_traceback))


def _escape(logger: Any, method: str, event: Event) -> Event:
    """Escape control characters; JSON does so by itself. A trace keeps its lines, indented: what it quotes can't pass for a line of the log."""
    return {_escaped(key): _indented(value) if key in TRACES else _escaped(value) for key, value in event.items()}


def _indented(trace: str) -> str:
    return "\n".join(f"    {_escaped(line)}" for line in trace.split("\n"))


def _escaped(value: Any) -> Any:
    if isinstance(value, bool | int | float) or value is None:
        return value
    return escape_controls(value if isinstance(value, str) else repr(value))
