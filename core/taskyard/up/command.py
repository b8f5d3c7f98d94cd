"""`taskyard up`."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr
from sqlalchemy import URL

from taskyard.database import database_url
from taskyard.embedded import start_broker, start_postgres
from taskyard.errors import TaskyardError
from taskyard.settings import DatabaseSettings, Settings, load_settings
from taskyard.stopping import budget
from taskyard.up.output import Output
from taskyard.up.parts import Embedded, Role
from taskyard.up.plan import Plan, child_environment, make_plan, taskyard_command
from taskyard.up.preflight import Preflight, fly
from taskyard.up.readiness import clock, first_task, until_ready
from taskyard.up.reload import Renew, Sources, Stamps, Try, watch, watched_sources
from taskyard.up.supervisor import Supervisor

# Seconds beyond its own budget that a role gets to stop before it is killed; and those of the migrations.
_BEYOND, _MIGRATION_GRACE = 3.0, 10.0
# Seconds that loading all plugins may take, beyond those of one that hangs.
_LOADING = 60.0


def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: api.host, 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one. Default: api.port, 8000.")] = None,
    data_dir: Annotated[Path, typer.Option(help="Folder for the embedded servers' data.")] = Path(".taskyard"),
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes to run.")] = 1,
    reload: Annotated[bool, typer.Option("--reload", help="For development: restart the parts when the source of an editable plugin changes.")] = False,
) -> None:
    """Run everything on this machine, with an embedded PostgreSQL and broker where no URL is set."""
    settings = load_settings(api={"host": host, "port": port})
    plan = make_plan(settings, data_dir=data_dir, workers=workers)
    sources = watched_sources(settings.plugins) if reload else None
    raise typer.Exit(asyncio.run(_run(plan, settings, sources)))


async def _run(plan: Plan, settings: Settings, sources: Sources | None) -> int:
    output = Output(sys.stderr, width=max(map(len, ("up", "postgres", *plan.roles()))), json_lines=plan.json_logs)
    supervisor = Supervisor(output)
    supervisor.listen()
    written = sources.stamps() if sources else {}
    try:
        starting = asyncio.ensure_future(_start(plan, settings, supervisor, output))
        asked = asyncio.ensure_future(supervisor.wait())
        await asyncio.wait([starting, asked], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await _until_asked(asked, *starting.result(), sources, written, output)
        starting.cancel()
        await asyncio.wait([starting])
    finally:
        await supervisor.stop()
    if not supervisor.failed:
        output.say("stopped")
    return int(supervisor.failed)


async def _until_asked(asked: asyncio.Future[None], try_it: Try, renew: Renew, sources: Sources | None, written: Stamps, output: Output) -> None:
    """Wait until somebody asks for the end, and renew the roles meanwhile when the sources change."""
    watching = asyncio.ensure_future(watch(sources, written, try_it, renew, output)) if sources else None
    await asyncio.wait([each for each in (asked, watching) if each], return_when=asyncio.FIRST_COMPLETED)
    if watching:
        if watching.done():
            watching.result()
        watching.cancel()
        await asyncio.wait([watching])


async def _start(plan: Plan, settings: Settings, supervisor: Supervisor, output: Output) -> tuple[Try, Renew]:
    """Start everything; what is answered tries whether the roles would start again, and restarts them."""
    urls = await _start_embedded(plan, supervisor)
    environment = child_environment(os.environ, urls)
    database = DatabaseSettings(url=SecretStr(urls["DATABASE_URL"])) if plan.embed_postgres else settings.database
    await _migrate(environment, output)
    since = await asyncio.to_thread(clock, database)
    for name, command in reversed(plan.roles().items()):
        await supervisor.add(Role(name, command, environment, output, budget(name.partition("-")[0], settings) + _BEYOND))
    await until_ready(plan.url, database, since=since, workers=plan.workers)
    supervisor.ready()
    await _greet(plan, database)

    async def try_it() -> Preflight:
        return await fly(plan.host, plan.port, environment, 2 * settings.plugins.import_timeout + _LOADING)

    async def renew() -> None:
        since = await asyncio.to_thread(clock, database)
        supervisor.restart(*plan.roles())
        await until_ready(plan.url, database, since=since, workers=plan.workers)

    return try_it, renew


async def _start_embedded(plan: Plan, supervisor: Supervisor) -> dict[str, str]:
    """Start what is missing; the addresses, by the names that the roles read."""
    urls = {}
    if plan.embed_postgres:
        postgres = Embedded("postgres", lambda: start_postgres(plan.data_dir))
        await supervisor.add(postgres)
        urls["DATABASE_URL"] = postgres.url
    if plan.embed_broker:
        broker = Embedded("broker", lambda: start_broker(plan.data_dir))
        await supervisor.add(broker)
        urls["CELERY_BROKER_URL"] = broker.url
    return urls


async def _migrate(environment: dict[str, str], output: Output) -> None:
    """The migrations are another room's, and Alembic would stay in this process's memory: so by command."""
    migration = Role("db", taskyard_command("db", "upgrade"), environment, output, _MIGRATION_GRACE)
    await migration.start()
    try:
        if await migration.ended() != 0:
            raise TaskyardError("The migrations failed; the lines above say why.")
    except asyncio.CancelledError:
        await migration.stop(asyncio.Event())
        raise


async def _greet(plan: Plan, database: DatabaseSettings) -> None:
    embedded = " and ".join(name for name, chosen in (("PostgreSQL", plan.embed_postgres), ("broker", plan.embed_broker)) if chosen)
    data = f"{plan.data_dir.resolve()} (embedded {embedded})" if embedded else _without_parameters(database_url(database))
    task = None if plan.asks_for_keys else await first_task(plan.url)
    with_key = ' -H "Authorization: Bearer $TASKYARD_KEY"' if plan.asks_for_keys else ""
    lines = [
        "",
        "Taskyard is ready.",
        f"  API    {plan.url}/api/v1",
        f"  Docs   {plan.url}/docs",
        f"  Data   {data}",
        *([f"  Keys   every call needs one: taskyard keys create NAME{_data_option(plan)}"] if plan.asks_for_keys else []),
        *([] if plan.asks_for_keys else ["  Open   to every user of this machine: no key is asked for, unless TASKYARD_AUTH__MODE=keys"]),
        f"  Try    {task or f'curl -s {plan.url}/api/v1/task-types{with_key}'}",
        "  Stop   Ctrl-C",
        "",
    ]
    typer.echo("\n".join(lines))


def _without_parameters(url: URL) -> str:
    """A URL for people: SQLAlchemy masks the password, and other secrets (a key's password) are parameters."""
    places = {name: value for name, value in url.query.items() if name in ("host", "port")}
    return str(url.set(drivername="postgresql", query=places))


def _data_option(plan: Plan) -> str:
    return f" --data-dir {shlex.quote(str(plan.data_dir))}" if plan.embed_postgres and plan.data_dir != Path(".taskyard") else ""
