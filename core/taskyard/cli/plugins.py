"""Look at the installed plugins, check them, and make new ones."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from taskyard.cli.output import AsJson, console, keep_plugins_quiet, say, say_lines, text, write_json, write_table
from taskyard.errors import PluginConflict
from taskyard.plugins import Plugin, conflicts, load_each
from taskyard.settings import PluginSettings, load_settings

app = typer.Typer(help="Look at the installed plugins, check them, and make new ones.", no_args_is_help=True)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the installed plugins and what each brings."""
    plugins = _installed(load_settings().plugins)
    taken = conflicts(plugins)
    if as_json:
        write_json({"items": [_describe(plugin) for plugin in plugins], "conflicts": taken})
    elif plugins:
        rows = [(p.name, p.version, p.distribution, p.state, p.failure, [h.type for h in p.handlers], [n.name for n in p.notifiers]) for p in plugins]
        write_table(("NAME", "VERSION", "DISTRIBUTION", "STATE", "REASON", "TASK TYPES", "NOTIFIERS"), rows, fold=("REASON", "TASK TYPES", "NOTIFIERS"))
        for plugin in plugins:
            if plugin.traceback:
                say_lines(f"{plugin.name} has failed:\n{plugin.traceback}")
    else:
        say("No plugin is installed. Those that come with Taskyard: pip install 'taskyard[standard]'")
    if taken:
        raise PluginConflict("\n".join(taken))


def _installed(chosen: PluginSettings) -> list[Plugin]:
    """All of them, also where two claim the same name and no role would start."""
    keep_plugins_quiet()
    return load_each(only=chosen.only, disabled=chosen.disabled, options=chosen.options, import_timeout=chosen.import_timeout)[0]


def _describe(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "version": plugin.version,
        "distribution": plugin.distribution,
        "state": plugin.state,
        "reason": plugin.reason,
        "where": plugin.where,
        "traceback": plugin.traceback,
        "task_types": [handler.type for handler in plugin.handlers],
        "notifiers": [notifier.name for notifier in plugin.notifiers],
    }


@app.command()
def check(
    name: Annotated[str | None, typer.Argument(help="The plugin; all that are enabled by default.")] = None,
    fuzz: Annotated[int, typer.Option(min=0, metavar="N", help="Try N odd payloads on each handler's model; needs taskyard[fuzz].")] = 0,
    twice: Annotated[bool, typer.Option("--twice", help="Run each handler on its example, twice, and compare. It does what it does!")] = False,
    as_json: AsJson = False,
) -> None:
    """Check that a plugin is what Taskyard and its users expect; exit with 1 if it is not."""
    from taskyard.testing import check_plugin

    keep_plugins_quiet()
    chosen = load_settings().plugins
    names = [name] if name else [plugin.name for plugin in _installed(chosen) if plugin.state != "disabled"]
    found = {each: check_plugin(each, chosen.options.get(each), fuzz=fuzz, twice=twice, among=chosen) for each in names}
    if as_json:
        write_json({"items": [{"name": each, "problems": problems} for each, problems in found.items()]})
    else:
        _tell(found)
    if any(found.values()):
        raise typer.Exit(1)


def _tell(found: dict[str, list[str]]) -> None:
    for name, problems in found.items():
        if not problems:
            console().print(text(f"{name}: fine"))
        for problem in problems:
            say_lines(problem, first=f"{name}: ")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The plugin's name, such as words. Its folder is called the same.")],
    notifier: Annotated[bool, typer.Option("--notifier", help="A plugin with a notifier instead of a handler.")] = False,
    directory: Annotated[Path, typer.Option("--dir", help="Where to make the folder.")] = Path(),
) -> None:
    """Write a new plugin: a distribution with a handler, or a notifier, and tests that pass."""
    from taskyard.scaffold import make_plugin

    made = make_plugin(name, "notifier" if notifier else "handler", directory)
    folder, project = shlex.quote(str(made.folder)), shlex.quote(f"{made.folder}[test]")
    if "/" not in str(made.folder):
        # Without it pip might take the folder for a project on PyPI.
        project = shlex.quote(f"./{made.folder}[test]")
    submit = "" if notifier else f'  taskyard submit {made.plugin}.greet --payload \'{{"name": "world"}}\' --wait\n'
    typer.echo(
        f"Made the plugin {made.plugin!r} in {made.folder}. Next:\n"
        f"  python -m pip install -e {project}\n"
        f"  python -m pytest {folder}\n"
        f"  taskyard plugins check {made.plugin}\n"
        f"Then start Taskyard again, or with --reload.\n{submit}",
        nl=False,
    )
