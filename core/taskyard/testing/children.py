"""The tasks that a handler submits in a test, checked as a worker checks them: by the models of its own plugin and of those that are installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any
from uuid import UUID

import pluggy

from taskyard import hookspecs, submission
from taskyard.errors import TaskyardError, UnknownTaskType
from taskyard.handlers import Handler, Submission, handler
from taskyard.plugins import Plugin, Registry, load_plugins
from taskyard.spelling import near_names
from taskyard.storable import to_json
from taskyard.testing.calling import hooks_near, names_near


class _Known(Registry):
    """The task types that a test knows. Installed plugins are loaded once one of theirs is asked for."""

    def handler(self, type_: str) -> Handler[Any, Any]:
        found = self.names.get(type_) or _installed().names.get(type_)
        if found is None:
            raise UnknownTaskType(type_, near_names(type_, {*self.names, *_installed().names}, 3))
        return found


def child_check(parent: Handler[Any, Any], config: Any, namespace: str, task_id: UUID, other_types: Iterable[str]) -> Callable[[Submission], str]:
    """What ``ctx.submit`` checks a task with. ``other_types`` are types of plugins that are not installed here: any payload fits them."""
    return partial(_row, _known(parent, config, tuple(other_types)), namespace, task_id)


def _row(known: Registry, namespace: str, parent: UUID, child: Submission) -> str:
    fields = {**child.options, "type": child.type, "payload": child.payload}
    return to_json(submission.prepare(known, fields, namespace=namespace, id=child.id, parent_id=parent).row())


def _known(parent: Handler[Any, Any], config: Any, other_types: tuple[str, ...]) -> Registry:
    named: dict[str, Handler[Any, Any]] = {}
    for one in [*_own(parent, config), *(_any_payload(type_) for type_ in other_types)]:
        if not named.keys() & set(one.names):
            named |= dict.fromkeys(one.names, one)
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return _Known([Plugin("tests", handlers=list({id(one): one for one in named.values()}.values()))], manager)


def _own(parent: Handler[Any, Any], config: Any) -> list[Handler[Any, Any]]:
    """The handlers that the parent's plugin brings; those of its module where there is no plugin around it."""
    for hook in hooks_near("taskyard_handlers", parent, thorough=False):
        try:
            return [one for one in (hook(config) if hook.__code__.co_argcount else hook()) if isinstance(one, Handler)]
        except Exception:  # noqa: S112  # it may need a configuration that this test does not give
            continue
    return [parent, *(value for value in names_near(parent) if isinstance(value, Handler))]


def _any_payload(type_: str) -> Handler[Any, Any]:
    def elsewhere(payload: Any) -> Any:
        """Run by a plugin that is not installed here."""

    return handler(type_)(elsewhere)


@lru_cache(maxsize=1)
def _installed() -> Registry:
    try:
        return load_plugins()
    except TaskyardError:
        # Two plugins here claim one name, say. That is not what this test is about.
        return load_plugins(entry_points=())
