"""Look at the settings, and check them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import typer
from pydantic import BaseModel

from taskyard.cli.output import AsJson, console, keep_plugins_quiet, say, write_json, write_table
from taskyard.errors import ConfigurationError
from taskyard.masking import MASK, SURE, Hidden, mask, mask_url, secrets_in
from taskyard.modelinfo import Key
from taskyard.plugins import WAITING, check_routes, check_subscriptions, is_waiting, load_plugins, route_options
from taskyard.settings import Settings, load_settings, load_with_places

app = typer.Typer(help="Look at the settings, and check them.", no_args_is_help=True)


@app.command()
def show(as_json: AsJson = False) -> None:
    """Show every setting and where it came from; secrets are masked."""
    loaded = load_with_places()
    masked = _masked(loaded.settings)
    rows = []
    for section, values in masked.items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            rows.append((f"{section}.{name}".rstrip("."), value, _place((section, name), loaded.places)))
    if as_json:
        write_json(masked | {"from": {setting: place for setting, _, place in rows}})
    else:
        write_table(("SETTING", "VALUE", "FROM"), rows, fold=("VALUE", "FROM"))


def _masked(settings: Settings) -> dict[str, Any]:
    """The settings as they may be shown. Plugins' and routes' options are read by the models of their plugins, which know the secrets among
    them by type: a chat service's URL is one, whatever its option is called.
    """
    hidden = Hidden()
    hidden.add(_sure(secrets_in(settings)))
    tables, routes = _read_options(settings) if settings.routes or settings.plugins.options else ({}, [])
    hidden.add(_sure(secrets_in([tables, routes])))
    shown = dict(settings)
    shown["plugins"] = dict(settings.plugins) | {name: _chosen(tables.get(name), table) for name, table in settings.plugins.options.items()}
    shown["routes"] = [dict(route) | {"options": _chosen(read, route.options)} for route, read in zip(settings.routes, routes, strict=True)]
    masked: dict[str, Any] = mask(shown, clean=lambda text: hidden.clean(mask_url(text)))
    return masked


def _chosen(read: BaseModel | None, written: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are set, as their model has read them. Where none has, nobody can tell which of them are secrets."""
    known = {} if read is None else dict(read)
    return {name: known.get(name, MASK) for name in written}


def _read_options(settings: Settings) -> tuple[dict[str, BaseModel], list[BaseModel | None]]:
    """The tables of plugins by name, and the options of each route, as their models read them; without those that are wrong."""
    keep_plugins_quiet()
    chosen = settings.plugins
    try:
        registry = load_plugins(only=chosen.only, disabled=chosen.disabled, options=chosen.options)
    except ConfigurationError:
        return {}, [None] * len(settings.routes)
    routes: list[BaseModel | None] = []
    for route in settings.routes:
        try:
            routes.append(route_options(registry, route))
        except ConfigurationError:
            routes.append(None)
    return {plugin.name: plugin.config for plugin in registry.plugins if plugin.config is not None}, routes


def _sure(secrets: Iterable[str]) -> list[str]:
    """Those that are no common words: the password "taskyard" must not hide the broker's prefix, which is a setting as well."""
    return [secret for secret in secrets if len(secret) >= SURE]


def _place(key: Key, places: dict[Key, str]) -> str:
    """Where a setting came from; a plugin's table may come from several places."""
    wanted = tuple(part for part in key if part)
    return ", ".join(dict.fromkeys(place for other, place in places.items() if other[: len(wanted)] == wanted)) or "default"


@app.command()
def check(as_json: AsJson = False) -> None:
    """Check the settings, the plugins' options and the routes; exit with 1 if anything is wrong."""
    problems = _problems()
    if as_json:
        write_json({"ok": not problems, "problems": problems})
    elif problems:
        for problem in problems:
            say(problem)
    else:
        console().print("The configuration is fine.")
    if problems:
        raise typer.Exit(1)


def _problems() -> list[str]:
    keep_plugins_quiet()
    try:
        settings = load_settings()
    except ConfigurationError as error:
        return str(error).splitlines()
    return find_problems(settings)


def find_problems(settings: Settings) -> list[str]:
    """What is wrong with settings that could be read: URLs, plugins' options, routes. A sentence each."""
    return _url_problems(settings) + _plugin_problems(settings)


def _url_problems(settings: Settings) -> list[str]:
    """Unset URLs are no problem: `taskyard up` brings its own servers."""
    # `config show` does without the service's parts.
    from taskyard.database import postgres_url
    from taskyard.dispatch.app import check_broker_url

    problems = []
    try:
        if settings.database.url is not None:
            postgres_url(settings.database)
    except ConfigurationError as error:
        problems.append(str(error))
    try:
        if settings.broker.url is not None:
            check_broker_url(settings.broker)
    except ConfigurationError as error:
        problems.append(str(error))
    return problems


def _plugin_problems(settings: Settings) -> list[str]:
    chosen = settings.plugins
    try:
        registry = load_plugins(only=chosen.only, disabled=chosen.disabled, options=chosen.options, import_timeout=chosen.import_timeout)
    except ConfigurationError as error:
        return [_placed(line, settings) for line in str(error).splitlines()]
    problems = []
    for plugin in registry.plugins:
        if plugin.state == "failed":
            problems += [_placed(f"plugin {plugin.name!r} ({plugin.distribution}): {line}", settings) for line in str(plugin.failure).splitlines()]
    for number, route in enumerate(settings.routes):
        if is_waiting(registry, route):
            problems.append(f"{settings.place(('routes', str(number)))}route {route.name!r} to {route.notifier!r}: {WAITING}.")
    for check in (partial(check_routes, registry, settings.routes, settings.place), partial(check_subscriptions, registry, settings)):
        try:
            check()
        except ConfigurationError as error:
            problems += str(error).splitlines()
    return problems


def _placed(sentence: str, settings: Settings) -> str:
    """The sentence, after the place of the plugin's setting that it names."""
    named = re.search(r"(?:^|: )(plugins(?:\.[\w-]+)+): ", sentence)
    return settings.place(tuple(named[1].split("."))) + sentence if named else sentence
