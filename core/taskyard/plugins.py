"""The plugin host: finds plugins by entry point, isolates broken ones, and answers who brings what."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import importlib_metadata
import pluggy
import structlog
from pydantic import BaseModel, ValidationError

from taskyard import __version__, hookspecs, logs, masking, tracebacks
from taskyard.compatibility import misfit
from taskyard.distributions import broken, first_by_name, hide_unreadable
from taskyard.distributions import entry_points as installed
from taskyard.errors import ConfigurationError, IncompatiblePlugin, PluginConflict, UnknownTaskType
from taskyard.handlers import Handler
from taskyard.import_watch import import_watched
from taskyard.lifespans import Lifespan, check_resources, read_lifespans
from taskyard.modelinfo import Key, sentences
from taskyard.notifiers import Notifier, check_notifier, is_for_operators_only
from taskyard.plugin_checks import check_handler, check_list, check_model, check_options, refuse_twins
from taskyard.plugin_failures import failure_of
from taskyard.settings import SUBSCRIBED, Route, Settings
from taskyard.spelling import near_names
from taskyard.timelimit import limited

GROUP = "taskyard.plugins"
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Plugin:
    """One installed plugin: where it came from, how it is, and what it brings.

    ``state`` is ``enabled``, ``disabled`` (by configuration) or ``failed``. Of one that has failed, ``reason`` says why, ``where`` in which file and
    line, and ``traceback`` how it got there; ``types`` are the task types that its source seems to declare.
    """

    name: str
    distribution: str = ""
    version: str = ""
    state: str = "enabled"
    reason: str | None = None
    where: str | None = None
    traceback: str | None = None
    types: tuple[str, ...] = ()
    config: BaseModel | None = None
    handlers: list[Handler[Any, Any]] = field(default_factory=list)
    notifiers: list[Notifier] = field(default_factory=list)
    #: What whoever may submit can do by it, as its hook ``taskyard_exposes`` says.
    exposes: str | None = None
    #: What its handlers share in a process, as its hook ``taskyard_lifespan`` says.
    lifespans: list[Lifespan] = field(default_factory=list)
    #: Threads that its import has started, as sentences: they are dead in the processes that run handlers.
    threads: list[str] = field(default_factory=list)

    @property
    def failure(self) -> str | None:
        """Why and where it has failed, as one sentence; None for one that has not."""
        return f"{self.reason}, at {self.where}" if self.reason and self.where else self.reason


class Registry:
    """The plugins of one process. Built once at start-up by :func:`load_plugins` and passed in."""

    def __init__(self, plugins: Iterable[Plugin], manager: pluggy.PluginManager) -> None:
        self.plugins = sorted(plugins, key=lambda p: p.name)
        self._named = {plugin.name: plugin for plugin in self.plugins}
        self.hook = manager.hook
        self.handlers: dict[str, Handler[Any, Any]] = {}
        #: The handlers by each name that they answer to.
        self.names: dict[str, Handler[Any, Any]] = {}
        self.notifiers: dict[str, Notifier] = {}
        self._owner: dict[str, Plugin] = {}
        if taken := conflicts(self.plugins):
            raise PluginConflict("\n".join(taken))
        for plugin in self.plugins:
            for handler in plugin.handlers:
                self.handlers[handler.type] = handler
                self.names |= dict.fromkeys(handler.names, handler)
            for notifier in plugin.notifiers:
                self._owner[notifier.name] = plugin
                self.notifiers[notifier.name] = notifier

    def handler(self, type_: str) -> Handler[Any, Any]:
        """The handler of a task type, under any name that it answers to.

        Raises:
            UnknownTaskType: with near matches.
        """
        try:
            return self.names[type_]
        except KeyError:
            failed = [plugin.name for plugin in self.plugins if plugin.state == "failed"]
            raise UnknownTaskType(type_, near_names(type_, self.names, 3), failed) from None

    def stored_as(self, types: Iterable[str]) -> tuple[str, ...]:
        """The names under which tasks of these types may be stored: a type's own and its aliases. An alias stands for itself alone."""
        return tuple(sorted({name for type_ in types for name in (self.handlers[type_].names if type_ in self.handlers else (type_,))}))

    def owners(self) -> dict[str, str]:
        """The plugin that brings each task type, by every name that the type answers to."""
        return {name: handler.plugin for name, handler in self.names.items()}

    def states(self) -> dict[str, str | None]:
        """Of each plugin that is not disabled, why and where it has failed; None for one that works."""
        return {plugin.name: plugin.failure for plugin in self.plugins if plugin.state != "disabled"}

    def config_of(self, handler: Handler[Any, Any]) -> BaseModel | None:
        """The configuration of the plugin that brought a handler."""
        owner = self._named.get(handler.plugin)
        return owner.config if owner else None

    def lifespans_of(self, handler: Handler[Any, Any]) -> list[Lifespan]:
        """The lifespans of the plugin that brought a handler."""
        owner = self._named.get(handler.plugin)
        return owner.lifespans if owner else []

    def config_of_notifier(self, name: str) -> BaseModel | None:
        """The configuration of the plugin that brought a notifier."""
        owner = self._owner.get(name)
        return owner.config if owner else None


def conflicts(plugins: Iterable[Plugin]) -> list[str]:
    """A sentence for each task type (also an alias) and each notifier that two plugins bring: both are named, with the places of their declarations."""
    taken: dict[str, tuple[Plugin, Any]] = {}
    found = []
    for plugin in plugins:
        brought = [(f"task type {name!r}", handler.function) for handler in plugin.handlers for name in handler.names]
        for what, declared in [*brought, *((f"notifier {notifier.name!r}", notifier.send) for notifier in plugin.notifiers)]:
            other, first = taken.setdefault(what, (plugin, declared))
            if other is not plugin:
                places = " and ".join(tracebacks.declared_at(each) or "an unknown place" for each in (first, declared))
                found.append(
                    f"Two plugins claim the {what}: {other.name!r} ({other.distribution}) and {plugin.name!r} ({plugin.distribution}). "
                    f"Disable one of them in [plugins]. They declare it at {places}."
                )
    return found


def load_plugins(
    *,
    only: Iterable[str] | None = None,
    disabled: Iterable[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    import_timeout: float = 60.0,
    entry_points: Iterable[importlib_metadata.EntryPoint] | None = None,
) -> Registry:
    """Find, load and configure every installed plugin.

    A plugin that fails to import, validate or register is marked as failed, with the reason, and the rest goes on; one that is
    not done after ``import_timeout`` seconds too. ``entry_points`` stands in for what is installed, in tests.

    Raises:
        PluginConflict: two plugins share a name, or claim one task type or notifier.
        ConfigurationError: ``only`` or ``disabled`` names a plugin that is not installed.
    """
    return Registry(*load_each(only=only, disabled=disabled, options=options, import_timeout=import_timeout, entry_points=entry_points))


def load_each(
    *,
    only: Iterable[str] | None = None,
    disabled: Iterable[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    import_timeout: float = 60.0,
    entry_points: Iterable[importlib_metadata.EntryPoint] | None = None,
) -> tuple[list[Plugin], pluggy.PluginManager]:
    """The plugins as :func:`load_plugins` loads them, also where some claim the same names.

    Raises:
        PluginConflict: two plugins share a name.
        ConfigurationError: ``only`` or ``disabled`` names a plugin that is not installed.
    """
    by_name = _by_name(_installed() if entry_points is None else entry_points)
    options = {_dashed(name, by_name): table for name, table in (options or {}).items()}
    _check_names(by_name, only, disabled, options)
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    plugins = []
    for name, entry in sorted(by_name.items()):
        plugin = _plugin(name, entry)
        if name in set(disabled) or (only is not None and name not in set(only)):
            plugin.state = "disabled"
        elif plugin.state == "enabled":
            _load_within(import_timeout, plugin, entry, manager, dict(options.get(name, {})))
        plugins.append(plugin)
    return plugins, manager


def _installed() -> Iterable[importlib_metadata.EntryPoint]:
    for problem in hide_unreadable():
        log.warning("distribution.ignored", reason=problem)
    return first_by_name(installed(GROUP))


def _plugin(name: str, entry: importlib_metadata.EntryPoint) -> Plugin:
    """A plugin before it is loaded. One whose distribution is broken has failed already."""
    if problem := broken(entry):
        log.error("plugin.failed", plugin=name, distribution="", reason=problem)
        return Plugin(name=name, state="failed", reason=problem)
    return Plugin(name=name, distribution=entry.dist.name if entry.dist else "", version=entry.dist.version if entry.dist else "")


def _by_name(found: Iterable[importlib_metadata.EntryPoint]) -> dict[str, importlib_metadata.EntryPoint]:
    by_name: dict[str, importlib_metadata.EntryPoint] = {}
    for entry in found:
        other = by_name.setdefault(entry.name, entry)
        # The same distribution can be seen twice on sys.path (an editable install and a build folder): one is enough.
        if other.value != entry.value:
            raise PluginConflict(f"Two plugins are named {entry.name!r}: {other.value} and {entry.value}. Uninstall one of them.")
    return by_name


def _dashed(name: str, installed: Container[str]) -> str:
    """An environment variable's name can't hold a dash: its my_plugin means ``my-plugin`` where that one is installed."""
    dashed = name.replace("_", "-")
    return dashed if name not in installed and dashed in installed else name


def _check_names(by_name: Mapping[str, Any], only: Iterable[str] | None, disabled: Iterable[str], options: Mapping[str, Any]) -> None:
    for where, names in (("plugins.only", only or ()), ("plugins.disabled", disabled), ("plugins", options)):
        for name in names:
            if name not in by_name:
                near = near_names(name, by_name)
                hint = f" Did you mean {near[0]!r}?" if near else f" Installed: {', '.join(sorted(by_name)) or 'none'}."
                raise ConfigurationError(f"{where}: no plugin {name!r} is installed.{hint}")


def _load_within(seconds: float, plugin: Plugin, entry: importlib_metadata.EntryPoint, manager: pluggy.PluginManager, options: dict[str, Any]) -> None:
    """Load one plugin; whatever it raises becomes its reason. SystemExit and its like too: a plugin must not end the host."""
    tracebacks.show_frames_of(entry.module)
    try:
        with limited(seconds), import_watched(plugin.name, entry.module, plugin.threads):
            _load(plugin, entry, manager, options)
        return
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Its text may quote what the plugin was configured with.
        logs.hide(masking.secrets_in([options, plugin.config]))
        failure = failure_of(entry, error, seconds)
    plugin.state, plugin.reason, plugin.where = "failed", failure.reason, failure.where
    plugin.traceback, plugin.types = failure.traceback, failure.types
    plugin.config, plugin.handlers, plugin.notifiers, plugin.lifespans = None, [], [], []
    if manager.has_plugin(plugin.name):
        manager.unregister(name=plugin.name)
    trace = {"exception": plugin.traceback} if plugin.traceback else {}
    log.error("plugin.failed", plugin=plugin.name, distribution=plugin.distribution, reason=plugin.reason, where=plugin.where, **trace)


def _load(plugin: Plugin, entry: importlib_metadata.EntryPoint, manager: pluggy.PluginManager, options: dict[str, Any]) -> None:
    # Before its import: what it needs of a newer Taskyard would be told as a name that can't be imported.
    if entry.dist and (problem := misfit(plugin.distribution, entry.dist.requires or (), __version__)):
        raise IncompatiblePlugin(problem)
    module = entry.load()
    manager.register(module, name=plugin.name)
    manager.check_pending()
    hooks = manager.subset_hook_caller
    others = [p for _, p in manager.list_name_plugin() if p is not module]
    models = [check_model(m, module) for m in hooks("taskyard_config", others)() if m is not None]
    plugin.config = _configure(plugin.name, models, options)
    for group in hooks("taskyard_handlers", others)(config=plugin.config):
        plugin.handlers += [check_handler(h, plugin.name) for h in check_list("taskyard_handlers", group, module)]
    for hook in hooks("taskyard_lifespan", others).get_hookimpls():
        plugin.lifespans += read_lifespans(plugin.name, hook.function, plugin.config)
    check_resources(plugin.handlers, plugin.lifespans)
    for group in hooks("taskyard_notifiers", others)(config=plugin.config):
        plugin.notifiers += [check_options(check_notifier(n)) for n in check_list("taskyard_notifiers", group, module)]
    plugin.exposes = next((str(said) for said in hooks("taskyard_exposes", others)(config=plugin.config) if said), None)
    refuse_twins("task type", [(name, h.function) for h in plugin.handlers for name in h.names])
    refuse_twins("notifier", [(n.name, n.send) for n in plugin.notifiers])


def _configure(name: str, models: list[type[BaseModel]], options: dict[str, Any]) -> BaseModel | None:
    if not models:
        if options:
            raise ConfigurationError(f"[plugins.{name}]: this plugin takes no configuration, but it has {', '.join(sorted(options))}")
        return None
    try:
        return models[0].model_validate(options)
    except ValidationError as error:
        raise ConfigurationError(explain(f"plugins.{name}", models[0], error)) from error


def explain(where: str, model: type[BaseModel], error: ValidationError) -> str:
    """A validation error as sentences that name each setting: ``plugins.http.timeout: input should be ...``.

    The rejected values are left out: they may be secrets.
    """
    return "\n".join(f"{'.'.join([where, *key])}: {sentence}" for key, sentence in sentences(model, error))


def load_plugins_for(settings: Settings) -> Registry:
    """The registry that these settings ask for; every route's notifier and options are checked too.

    Raises:
        PluginConflict, ConfigurationError: see :func:`load_plugins`; a route is wrong, or clients may name a notifier that is for operators only.
    """
    chosen = settings.plugins
    registry = load_plugins(only=chosen.only, disabled=chosen.disabled, options=chosen.options, import_timeout=chosen.import_timeout)
    check_routes(registry, settings.routes, settings.place)
    check_subscriptions(registry, settings)
    logs.hide(masking.secrets_in([plugin.config for plugin in registry.plugins]))
    for route in settings.routes:
        usable = not is_waiting(registry, route)
        logs.hide(masking.secrets_in(route_options(registry, route) if usable else route.options))
        if not usable:
            log.error("route.waits", route=route.name, notifier=route.notifier, reason=WAITING)
    return registry


#: What is said of a route whose notifier is missing where a plugin has failed: one broken plugin must not stop the host.
WAITING = "no plugin that works brings its notifier, and there is one that failed; its notifications are tried again later"


def is_waiting(registry: Registry, route: Route) -> bool:
    """Is the route's notifier missing, perhaps because its plugin has failed?"""
    return route.notifier not in registry.notifiers and any(plugin.state == "failed" for plugin in registry.plugins)


def check_routes(registry: Registry, routes: Iterable[Route], place: Callable[[Key], str] = lambda key: "") -> None:
    """Refuse routes whose notifier is not there (unless a plugin has failed), or whose options its notifier does not take.

    ``place`` tells where a setting was made.

    Raises:
        ConfigurationError: one line for each problem of each route.
    """
    problems, seen = [], set()
    for number, route in enumerate(routes):
        found: list[tuple[Key, str]] = []
        if route.name in seen:
            found.append((("name",), "the name is used twice; deliveries are told apart by it."))
        seen.add(route.name)
        if route.name.startswith(SUBSCRIBED):
            found.append((("name",), f"names that begin with {SUBSCRIBED} stand for the subscriptions of tasks. Give it another one."))
        if not is_waiting(registry, route):
            found += _validated(registry, route)[1]
        problems += [f"{place(('routes', str(number), *key))}route {route.name!r}: {sentence}" for key, sentence in found]
    if problems:
        raise ConfigurationError("\n".join(problems))


def check_subscriptions(registry: Registry, settings: Settings) -> None:
    """Refuse to let submissions name a notifier that is for operators only (see :func:`taskyard.notifiers.is_for_operators_only`).

    Raises:
        ConfigurationError: one line for each.
    """
    place = settings.place(("deliveries", "subscriptions"))
    closed = [name for name in settings.deliveries.subscriptions if name in registry.notifiers and is_for_operators_only(registry.notifiers[name])]
    if closed:
        sentence = "is for operators only: what its options reach is not for clients to choose. Use it in [[routes]], and take it out of this list."
        raise ConfigurationError("\n".join(f"{place}deliveries.subscriptions: the notifier {name!r} {sentence}" for name in closed))


def route_options(registry: Registry, route: Route) -> BaseModel:
    """A route's options, validated by its notifier's model. Its validators find the plugin's configuration in their context, as ``config``.

    Raises:
        ConfigurationError: names the route and each wrong option.
    """
    options, problems = _validated(registry, route)
    if options is None:
        raise ConfigurationError("\n".join(f"route {route.name!r}: {sentence}" for _, sentence in problems))
    return options


def _validated(registry: Registry, route: Route) -> tuple[BaseModel | None, list[tuple[Key, str]]]:
    """The options, or what is wrong and where in the route."""
    notifier = registry.notifiers.get(route.notifier)
    if notifier is None:
        return None, [(("notifier",), _missing(registry, route.notifier))]
    try:
        return notifier.Options.model_validate(route.options, context={"config": registry.config_of_notifier(route.notifier)}), []
    except ValidationError as error:
        found = sentences(notifier.Options, error)
        return None, [(("options", *key), f"{'.'.join(('options', *key))}: {sentence}") for key, sentence in found]


def _missing(registry: Registry, notifier: str) -> str:
    near = near_names(notifier, registry.notifiers)
    failed = [f"{p.name} ({p.failure})" for p in registry.plugins if p.state == "failed"]
    hint = f" Did you mean {near[0]!r}?" if near else f" Installed: {', '.join(sorted(registry.notifiers)) or 'none'}."
    return f"no plugin brings the notifier {notifier!r}.{hint}" + (f" Failed plugins: {'; '.join(failed)}." if failed else "")
