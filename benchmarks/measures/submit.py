"""How fast tasks are taken: `POST /tasks` with one web process, beside a service that stores nothing and the usual one; and batches."""

from __future__ import annotations

import json
from contextlib import ExitStack

from benchmarks.figures import percentile
from benchmarks.load import Load
from benchmarks.loads import CEILING, USUAL, Sent, ceiling, send, usual_service
from benchmarks.run import Run
from benchmarks.taskyard_side import taskyard

CONNECTIONS = (1, 8, 32, 128)
#: Tasks in a batch, and connections that send some.
BATCH, BATCHERS = 1000, 4


def submit(run: Run) -> None:
    """Requests a second and their latency. No dispatcher and no worker run meanwhile."""
    with ExitStack() as stack:
        side = stack.enter_context(taskyard(run.parts[0], run.fresh("taskyard"), "serve"))
        services = {side.name: side.url, CEILING: stack.enter_context(ceiling(run)), USUAL: stack.enter_context(usual_service(run, worker=False))}
        known = {name: url for name, url in services.items() if url}
        stuck: set[tuple[str, int]] = set()
        for url in known.values():
            send(Load(url, 8, min(1.0, run.size.seconds)), may_refuse=True)
        for number in range(run.size.rounds):
            for connections in CONNECTIONS:
                for name, url in known.items():
                    if (name, connections) in stuck:
                        continue
                    run.say(f"submit, round {number + 1}: {name}, {connections} connections")
                    sent = send(Load(url, connections, run.size.seconds), may_refuse=name == USUAL)
                    if sent.refused:
                        # Its threads wait for connections to PostgreSQL that its threads hold: half a minute, each time.
                        stuck.add((name, connections))
                        run.note(f"submit: {name} refused {sent.refused} requests at {connections} connections; the {len(sent.latencies)} others count")
                    _tell(run, f"{connections} connection{'s'[: connections > 1]}", name, "requests a second", sent)
            run.say(f"submit, round {number + 1}: {side.name}, batches")
            body = json.dumps({"tasks": [{"type": "bench.sync", "payload": {"number": number}} for number in range(BATCH)]})
            sent = send(Load(side.url, BATCHERS, run.size.seconds, path="/api/v1/tasks/batch", body=body))
            _tell(run, f"batches of {BATCH:,}, {BATCHERS} connections", side.name, "tasks a second", sent, BATCH)


def _tell(run: Run, case: str, name: str, what: str, sent: Sent, tasks: int = 1) -> None:
    run.figures.add("submit", case, name, what, "1/s", sent.rate * tasks)
    run.figures.add("submit", case, name, "p50", "ms", percentile(sent.latencies, 50) * 1000)
    run.figures.add("submit", case, name, "p99", "ms", percentile(sent.latencies, 99) * 1000)
