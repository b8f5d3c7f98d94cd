"""What commands that call the service have in common: which one, with which key, and what completes their words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer

from taskyard.cli.output import say
from taskyard.client import Client, Retries, Unreachable, profiles
from taskyard.client.exchange import check_url
from taskyard.errors import ConfigurationError, TaskyardError
from taskyard.statuses import LIVE, TERMINAL

#: A command is repeated by its user: a service that is away is told soon.
RETRIES = Retries(most=2)
#: Seconds that a completion may take: somebody waits for it with a finger on the key.
COMPLETION = 2.0
SHOWN = 50


def completes_profiles() -> list[str]:
    """The names of the user's profiles."""
    with suppress(TaskyardError):
        return sorted(profiles.read(os.environ).tables)
    return []


Url = Annotated[str | None, typer.Option("--url", help="Address of the service. [env var: TASKYARD_URL; default: http://127.0.0.1:8000]", show_default=False)]
Key = Annotated[str | None, typer.Option("--key", help="Access key, where the service asks for one. [env var: TASKYARD_KEY]", show_default=False)]
ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile",
        help="Service of this name in ~/.config/taskyard/profiles.toml. [env var: TASKYARD_PROFILE]",
        show_default=False,
        autocompletion=completes_profiles,
    ),
]


Namespace = Annotated[
    str | None,
    typer.Option("--namespace", help="Only this namespace. Another one than the key's own needs a key with the scope all-namespaces.", show_default=False),
]
AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces: needs a key with the scope all-namespaces.")]


def namespace_filter(namespace: str | None, every: bool) -> dict[str, str]:
    """The filter that these two options stand for."""
    if namespace is not None and every:
        raise typer.BadParameter("expected a namespace, or all of them, and not both", param_hint="--namespace")
    return {"namespace": "*"} if every else {} if namespace is None else {"namespace": namespace}


@contextmanager
def connect(url: str | None, key: str | None, profile: str | None = None, *, retries: Retries = RETRIES) -> Iterator[Client]:
    """The service that a command's options, the environment and the user's profiles name.

    Raises:
        ConfigurationError: they name none.
        Unreachable: nobody answers there; with the way out.
    """
    place = _place(url, key, profile, warn=True)
    try:
        with Client(place.url, place.key, retries=retries) as client:
            yield client
    except Unreachable as error:
        if error.sent:
            raise
        raise Unreachable(f"{error} Start the service with `taskyard up`, or name its address with --url or TASKYARD_URL.") from error


def _place(url: str | None, key: str | None, profile: str | None, *, warn: bool = False) -> profiles.Place:
    known = profiles.read(os.environ)
    if warn and known.is_exposed():
        say(f"Others can read {known.path}, and it holds keys: chmod 600 {known.path}")
    place = profiles.choose(url, key, profile, known, os.environ)
    try:
        check_url(place.url)
    except ConfigurationError as error:
        raise ConfigurationError(f"--url {error}") from error
    return place


# --- completion ---


def _asked(ctx: typer.Context, ask: Callable[[Client], Iterable[str]]) -> list[str]:
    """What a service says. A completion that can't be had is none."""
    given = ctx.params
    with suppress(TaskyardError):
        place = _place(given.get("url"), given.get("key"), given.get("profile"))
        with Client(place.url, place.key, timeout=COMPLETION, retries=Retries(most=0)) as client:
            return list(ask(client))
    return []


def complete_type(ctx: typer.Context, incomplete: str) -> list[str]:
    """Task types that begin so."""
    return _asked(ctx, lambda client: [found.type for found in client.task_types() if found.type.startswith(incomplete)])


def complete_id(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The newest tasks whose ids begin so, each with its type and status."""
    found: list[tuple[str, str]] = []

    def ask(client: Client) -> Iterable[str]:
        tasks = client.page(limit=SHOWN, q=incomplete) if incomplete else client.page(limit=SHOWN)
        found.extend((str(task.id), f"{task.type} {task.status}") for task in tasks.items if str(task.id).startswith(incomplete))
        return ()

    _asked(ctx, ask)
    return found


def complete_queue(ctx: typer.Context, incomplete: str) -> list[str]:
    """Queues that begin so."""
    return _asked(ctx, lambda client: [queue.name for queue in client.queues() if queue.name.startswith(incomplete)])


def complete_status(incomplete: str) -> list[str]:
    """Statuses that begin so."""
    return [status for status in (*LIVE, *TERMINAL) if status.startswith(incomplete)]
