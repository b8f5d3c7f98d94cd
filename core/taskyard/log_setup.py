"""How this process logs, as one value: what a plugin has changed of it is seen, and put back.

Plugins call ``logging.basicConfig``, ``dictConfig`` and ``structlog.configure``, as programs do. In a process of many that silences
everybody, and lets pass what is masked.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import structlog

#: Switched off by ``disable_existing_loggers`` (and so by ``dictConfig`` as it is by default) together with all others.
_CANARY = logging.getLogger("taskyard.canary")
#: Loggers whose own settings would silence Taskyard.
_OURS = tuple(logging.getLogger(name) for name in ("taskyard", "taskyard_worker", "taskyard_api"))
_ROOT = logging.getLogger()

State = tuple[Any, ...]


def _settings_of(logger: logging.Logger) -> State:
    return logger.level, logger.disabled, logger.propagate, tuple(logger.handlers), tuple(logger.filters)


def _put_back_logger(logger: logging.Logger, state: State) -> None:
    level, logger.disabled, logger.propagate, handlers, filters = state
    logger.handlers[:], logger.filters[:] = handlers, filters
    # Clears the caches of all loggers, too.
    logger.setLevel(level)


def _structlog() -> State:
    found = structlog.get_config()
    return tuple(found["processors"]), found["wrapper_class"], found["context_class"], found["logger_factory"], found["cache_logger_on_first_use"]


class LogSetup:
    """The set-up of logging at one moment. :meth:`put_back` returns to it."""

    def __init__(self) -> None:
        self._root = _settings_of(_ROOT)
        self._handlers = [(handler, handler.level, handler.formatter, tuple(handler.filters)) for handler in _ROOT.handlers]
        self._ours = [_settings_of(logger) for logger in _OURS]
        self._structlog = _structlog()
        self._below = logging.root.manager.disable
        self._factory = logging.getLogRecordFactory()
        self._showwarning = warnings.showwarning
        self._off = {name for name, logger in logging.root.manager.loggerDict.items() if isinstance(logger, logging.Logger) and logger.disabled}

    def put_back(self) -> list[str]:
        """Undo what has changed since, and name it. Where nothing has, this takes some microseconds."""
        changed = [name for name, is_as_it_was, _ in self._parts() if not is_as_it_was()]
        if changed:
            for _, _, put_back in self._parts():
                put_back()
        return changed

    def _parts(self) -> tuple[tuple[str, Callable[[], bool], Callable[[], None]], ...]:
        return (
            ("the root logger", self._has_root, self._put_back_root),
            ("Taskyard's loggers", self._has_ours, self._put_back_ours),
            ("loggers that exist", lambda: not _CANARY.disabled, self._switch_on),
            ("logging.disable", lambda: logging.root.manager.disable == self._below, lambda: logging.disable(self._below)),
            ("the factory of log records", lambda: logging.getLogRecordFactory() is self._factory, lambda: logging.setLogRecordFactory(self._factory)),
            ("warnings", lambda: warnings.showwarning is self._showwarning, self._put_back_warnings),
            ("structlog", lambda: _structlog() == self._structlog, self._put_back_structlog),
        )

    def _has_root(self) -> bool:
        return _settings_of(_ROOT) == self._root and all(
            (handler.level, handler.formatter, tuple(handler.filters)) == (level, formatter, filters) for handler, level, formatter, filters in self._handlers
        )

    def _put_back_root(self) -> None:
        _put_back_logger(_ROOT, self._root)
        for handler, level, formatter, filters in self._handlers:
            handler.setLevel(level)
            handler.setFormatter(formatter)
            handler.filters[:] = filters

    def _has_ours(self) -> bool:
        return all(_settings_of(logger) == state for logger, state in zip(_OURS, self._ours, strict=True))

    def _put_back_ours(self) -> None:
        for logger, state in zip(_OURS, self._ours, strict=True):
            _put_back_logger(logger, state)

    def _switch_on(self) -> None:
        for name, logger in list(logging.root.manager.loggerDict.items()):
            if isinstance(logger, logging.Logger) and name not in self._off:
                logger.disabled = False

    def _put_back_warnings(self) -> None:
        warnings.showwarning = self._showwarning

    def _put_back_structlog(self) -> None:
        processors, wrapper_class, context_class, logger_factory, cache = self._structlog
        structlog.configure([*processors], wrapper_class, context_class, logger_factory, cache)
