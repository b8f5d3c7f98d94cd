"""Checks of what is configured here: settings, plugins, routes, and the web process of this machine."""

from __future__ import annotations

import http.client
import platform
import urllib.error
from collections.abc import Iterator, Sequence

from taskyard import __version__
from taskyard.doctor import Finding, fail, ok, warn
from taskyard.network import open_directly, own_url
from taskyard.plugins import Registry
from taskyard.settings import Settings

SECONDS = 5.0


def check_version() -> Finding:
    """What runs here."""
    return ok("version", f"Taskyard {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")


def check_settings(problems: Sequence[str]) -> Iterator[Finding]:
    """``problems`` are those of `taskyard config check`."""
    for problem in problems:
        yield fail("settings", problem, "Correct it; `taskyard config check` looks again.")
    if not problems:
        yield ok("settings", "settings, plugins' options and routes are right")


def check_plugins(registry: Registry, settings: Settings) -> Iterator[Finding]:
    """Which plugins run here. Those that failed are among the settings' problems."""
    enabled = [plugin.name for plugin in registry.plugins if plugin.state == "enabled"]
    if not registry.handlers:
        yield warn("plugins", f"{len(enabled)} enabled, and none brings a task type", "Install one: pip install 'taskyard[standard]', or a plugin of yours.")
    else:
        yield ok("plugins", f"{', '.join(enabled)}: {len(registry.handlers)} task types, {len(registry.notifiers)} notifiers")
    yield ok("routes", f"{len(settings.routes)} to {', '.join(sorted({route.notifier for route in settings.routes})) or 'no notifier'}")


def check_web(settings: Settings) -> Iterator[Finding]:
    """The web process at the configured address. It may well run elsewhere."""
    url = f"{own_url(settings.api.host, settings.api.port)}/health/ready"
    try:
        with open_directly(url, timeout=SECONDS):
            yield ok("web", f"{url} says that it is ready")
    except urllib.error.HTTPError as error:
        said = " ".join(error.read(2000).decode(errors="replace").split())
        ours = error.code == 503
        advice = "The parts in the answer say what is missing." if ours else "Something else seems to listen there: compare api.host and api.port."
        yield fail("web", f"{url} answered {error.code}: {said}", advice)
    except http.client.HTTPException as error:
        yield fail("web", f"{url} does not speak HTTP: {error or type(error).__name__}", "Something else listens there: compare api.host and api.port.")
    except OSError as error:
        yield warn("web", f"nothing answers at {url}: {error}", "Start `taskyard serve`, unless the web processes are on other machines.")
