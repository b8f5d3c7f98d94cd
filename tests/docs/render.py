"""Writes the parts of docs/reference that are made from the code; with --check, only says which are out of date.

Run it from the repository's root: `python tests/docs/render.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from taskyard.gauges import GAUGES
from taskyard.metrics import SHARED, Metric
from taskyard.modelinfo import environment_name, section_of
from taskyard.settings import PluginSettings, Route, Settings
from taskyard_api.measures import OWN

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"

SETTINGS_HEAD = """\
# Settings

<!-- Made by tests/docs/render.py from core/taskyard/settings.py: change the text there. -->

Every process builds one settings object when it starts, and stops with a sentence for each mistake it finds.
`taskyard config show` prints all settings and where each came from, secrets masked; `taskyard config check` also checks the
plugins' options and the routes.

## Where settings come from

The strongest first:

1. options of the command line, such as `taskyard serve --port 8001`
2. the environment: `TASKYARD_<SECTION>__<NAME>`, with two underscores between
3. a `.env` file in the current folder, with the same names
4. `taskyard.toml`: the file that `TASKYARD_CONFIG` names, else `./taskyard.toml` if it is there

An empty variable counts as unset. Lists in a variable are JSON or comma separated: `TASKYARD_WORKER__QUEUES=default,mail`. A name that no
setting has is an error that tells the nearest one. Passed over are `TASKYARD_CONFIG`, `TASKYARD_URL`, `TASKYARD_KEY` and `TASKYARD_PROFILE` (for clients),
`TASKYARD_TASK_ID` and `TASKYARD_ATTEMPT` (which `process.run` gives its commands), `TASKYARD_TEST_...`, and what Kubernetes sets for a service named
taskyard.

In `.env`, `${NAME}` stands for another variable of that file or of the environment, `${NAME:-text}` for `text` where it is not set. A setting
that refers to a variable that is not set is refused. Put a value in single quotes to keep it as it is written: `POSTGRES_PASSWORD='a${b}c'`.

These names are accepted too, in the environment and in `.env`; a `TASKYARD_` name in the same place is stronger:

| Variable | Sets |
| --- | --- |
| `DATABASE_URL` | `database.url` |
| `CELERY_BROKER_URL` | `broker.url` |
| `CELERY_RESULT_BACKEND` | `broker.result_backend` |
| `FORWARDED_ALLOW_IPS` | `api.trusted_proxies` |
| `POSTGRES_HOST`, `_PORT`, `_DB`, `_USER`, `_PASSWORD` | `database.url`, where nothing else sets it and the host or the database is given |

## Secrets in the file

`${env:NAME}` in any string of `taskyard.toml` stands for an environment variable (or one from `.env`), `${file:PATH}` for a file's
text without its last line break. A relative path starts at the folder of `taskyard.toml`. One that is missing is an error, unless a stronger source
sets the same key.
"""

SETTINGS_COLUMNS = """\
| Setting | Type | Default | Environment | Description |
| --- | --- | --- | --- | --- |
"""

PLUGINS_TAIL = """
Each plugin has a table of its own, `[plugins.<name>]`, validated by its own model: see the plugin's README. In the environment it is
`TASKYARD_PLUGINS__<NAME>__<OPTION>`, such as `TASKYARD_PLUGINS__HTTP__ALLOW_PRIVATE_NETWORKS=true`; write a dash as an underscore, and lists
and tables as JSON.
"""

ROUTES_HEAD = """
## `[[routes]]`

Which events go to which notifier. Write one `[[routes]]` table for each; or all of them as a JSON list in `TASKYARD_ROUTES`.

| Key | Type | Default | Description |
| --- | --- | --- | --- |
"""

METRICS_HEAD = """\
# Metrics

<!-- Made by tests/docs/render.py from the definitions in the code: change the text there. -->

`GET /metrics` of any web process shows the whole installation, in Prometheus' text format. [Operators](../operators.md#metrics) has a scrape
configuration and alert rules.

Labels are bounded. `type` and `notifier` name what is installed, `queue` those queues that handlers name or workers serve; all else is `other`, so that
no client can make series.

A series begins at 0 before anything happens, so that `increase()` sees the first event: each installed type in its queue (in every known queue too, up
to 500 pairs), each notifier with each outcome, each route of the service with `500` and `503`. Prometheus must have scraped that 0 once.
"""

METRICS_PARTS: tuple[tuple[str, str, Sequence[Metric]], ...] = (
    (
        "Counted by all processes",
        """\
Kept in PostgreSQL and the same in every web process: aggregate with `max without (instance)`, not with `sum`. A process brings what it counted
every few seconds and when it stops. One that is killed loses the counts of its last seconds, and so does a flush whose answer was lost; nothing is
counted twice. What single tasks went through is in their rows and events.
""",
        SHARED,
    ),
    (
        "Read from the database",
        """\
At each scrape, by index and bounded. Where a backlog is deep, `taskyard_tasks` stops at 10,000 tasks of a priority, or at 20,000 in all,
and `taskyard_tasks_capped` is 1. Don't compute the depth from the counters: a process that is killed loses some of its counts, so submitted less
finished drifts. Their rates tell whether a backlog grows, and `taskyard_oldest_pending_seconds` tells how far behind it is.
""",
        GAUGES,
    ),
    (
        "Of the web process that answers",
        """\
These are there without a database too. `process_...` are those of the Prometheus client: memory, processor time, open files, start time.
""",
        OWN,
    ),
)


def metrics_reference() -> str:
    """docs/reference/metrics.md: every metric with its labels and what it tells."""
    pages = [METRICS_HEAD]
    for title, text, metrics in METRICS_PARTS:
        pages.append(f"\n## {title}\n\n{text}\n| Metric | Kind | Labels | Tells |\n| --- | --- | --- | --- |\n")
        for metric in metrics:
            labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
            pages.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |\n")
    return "".join(pages)


def settings_reference() -> str:
    """docs/reference/settings.md: every setting with type, default, environment name and description."""
    pages = [SETTINGS_HEAD]
    for name, field in Settings.model_fields.items():
        if section := section_of(field.annotation):
            pages.append(f"\n## `[{name}]`\n\n{(section.__doc__ or '').strip().replace('``', '`')}\n\n{SETTINGS_COLUMNS}")
            pages += [f"| `{name}.{key}` | {kind} | {default} | `{environment_name((name, key))}` | {text} |\n" for key, kind, default, text in _rows(section)]
            pages += [PLUGINS_TAIL] if section is PluginSettings else []
    pages.append(ROUTES_HEAD)
    pages += [f"| `{key}` | {kind} | {default} | {text} |\n" for key, kind, default, text in _rows(Route)]
    return "".join(pages)


def _rows(model: type[BaseModel]) -> list[tuple[str, str, str, str]]:
    schema = model.model_json_schema()
    rows = []
    for key, item in schema["properties"].items():
        default = "required" if key in schema.get("required", ()) else _default(item.get("default"))
        rows.append((key, _kind(item), default, item["description"].replace("|", r"\|")))
    return rows


def _default(value: Any) -> str:
    if value in (None, "", [], ()):
        return "unset" if value is None else "empty"
    return f"`{value}`"


def _kind(item: dict[str, Any]) -> str:
    """A JSON Schema in words."""
    if "anyOf" in item:
        return " or ".join(_kind(each) for each in item["anyOf"] if each.get("type") != "null")
    if "enum" in item or "const" in item:
        return ", ".join(f"`{value}`" for value in item.get("enum", [item.get("const")]))
    if item["type"] == "array":
        return f"list of {_kind(item['items'])}"
    kind = {
        "string": "secret text" if item.get("writeOnly") else "text",
        "integer": "integer",
        "number": "number",
        "boolean": "true or false",
        "object": "table",
    }[item["type"]]
    least, above, most = item.get("minimum"), item.get("exclusiveMinimum"), item.get("maximum")
    bounds = [f"above {above:g}" if above is not None else f"from {least}" if least is not None else "", f"to {most:.12g}" if most is not None else ""]
    return " ".join([kind, *filter(None, bounds)])


PAGES: dict[str, Callable[[], str]] = {"metrics.md": metrics_reference, "settings.md": settings_reference}


def main() -> int:
    """1 if a page was asked to be checked and is out of date."""
    stale = [name for name, render in PAGES.items() if not (REFERENCE / name).is_file() or (REFERENCE / name).read_text() != render()]
    if "--check" not in sys.argv:
        REFERENCE.mkdir(parents=True, exist_ok=True)
        for name in stale:
            (REFERENCE / name).write_text(PAGES[name]())
        return 0
    for name in stale:
        print(f"docs/reference/{name} is out of date: run python tests/docs/render.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
