"""The state machine is worth its time: with any one guard taken out of the SQL it goes red.

Some are taken out in each run of the tests; ``TASKYARD_MUTATIONS=all`` takes out all, one after the other, in some minutes.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import Phase, settings
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from taskyard import lifecycle

from .test_machine import SETTINGS, run

#: What is taken out: the statement, the text in it, and what stands there instead.
MUTATIONS = {
    "finish heeds no fence": ("_FINISH", "AND t.fence = said.fence", "", "AND t.fence = d.fence", ""),
    "finish heeds no status": ("_FINISH", "AND t.fence = said.fence AND t.status = 'running'", "AND t.fence = said.fence", "AND t.status = 'running'", ""),
    "a lost run spends its attempt": ("_FINISH", "d.outcome IN ('lost', 'returned', 'parked') AND", "d.outcome IN ('returned', 'parked') AND"),
    "a task handed back spends its attempt": ("_FINISH", "d.outcome IN ('lost', 'returned', 'parked') AND", "d.outcome IN ('lost', 'parked') AND"),
    "a lost run is not counted": ("_FINISH", "lost = t.lost + CASE WHEN d.outcome = 'lost' THEN 1 ELSE 0 END,", ""),
    "lost runs have no cap": ("_FINISH", "t.lost + 1 > :max_lost", ":max_lost < 0"),
    "a retry has one attempt too many": ("_FINISH", "t.attempt >= t.max_attempts", "t.attempt > t.max_attempts"),
    "a retry outlives a cancel": ("_FINISH", "WHEN t.cancel_requested_at IS NOT NULL THEN 'cancelled'", ""),
    "success keeps the old error": ("_FINISH", "error = CASE WHEN d.becomes = 'succeeded' THEN NULL\n", "error = CASE WHEN false THEN NULL\n"),
    "cancel heeds no status": ("_CANCEL", "t.status IN ('scheduled', 'pending', 'queued', 'held', 'running') AND", ""),
    "cancel asks twice": ("_CANCEL", "AND t.cancel_requested_at IS NULL", ""),
    "hold takes what runs": ("_HOLD", "t.status IN ('scheduled', 'pending', 'queued')", "t.status IN ('scheduled', 'pending', 'queued', 'running')"),
    "hold forgets the schedule": ("_HOLD", "next_run_at = NULL,", ""),
    "release forgets the schedule": (
        "_RELEASE",
        "WHEN t.run_at > now() THEN 'scheduled'",
        "WHEN false THEN 'scheduled'",
        "WHEN t.run_at > now() THEN t",
        "WHEN false THEN t",
    ),
    "retry takes what succeeded": ("_RETRY", "t.status IN ('failed', 'cancelled', 'expired')", "t.status IN ('failed', 'cancelled', 'expired', 'succeeded')"),
    "retry keeps the lost runs": ("_RETRY", "lost = 0,", ""),
    "retry keeps the wish to cancel": ("_RETRY", "cancel_requested_at = NULL,", ""),
    "people reach into other namespaces": ("_HOLD", "AND t.namespace = :namespace", "AND CAST(:namespace AS text) <> ''"),
    "a claim does not raise the fence": (
        "_CLAIM",
        "fence = t.fence + CASE WHEN chosen.run THEN 1 ELSE 0 END",
        "fence = t.fence + CASE WHEN t.attempt < t.fence THEN 0 ELSE 1 END",
    ),
    "a claim takes what is held": (
        "_CLAIM",
        "AND in_line AND status IN ('pending', 'queued') AND queue",
        "AND status IN ('pending', 'queued', 'held') AND queue",
        "AND t.status IN ('pending', 'queued')",
        "",
    ),
    "a claim needs no live worker": ("_CLAIM", "FROM workers WHERE id = :worker FOR KEY SHARE", "FROM (SELECT CAST(:worker AS uuid) AS id, 'w' AS name) AS w"),
    "a claim runs what has expired": ("_CLAIM", "AND (expires_at IS NULL OR expires_at > now())\n    UNION", "UNION"),
    "a claim heeds no pause": ("_CLAIM", "q.paused_at IS NOT NULL", "false"),
    "a claim heeds no priority": ("_CLAIM", "priority > (SELECT min(priority) FROM hinted)", "false"),
    "a claim takes hints of another line": ("_CLAIM", "AND queue = :queue AND lane = :lane\n    AND EXISTS", "AND EXISTS"),
    "a dispatch heeds no pause": ("_DISPATCH", "q.paused_at IS NOT NULL", "false"),
    "a dispatch heeds no priority": ("_DISPATCH", "ORDER BY priority DESC, id LIMIT", "ORDER BY id LIMIT"),
    "a dispatch sends what is fresh again": ("_DISPATCH", "AND queued_at < now() - :stale * interval '1 second'", "AND :stale > 0"),
    "the sweep is gone": ("_DISPATCH", "OR (status = 'queued' AND queued_at < now() - :stale * interval '1 second')", "OR :stale < 0"),
    "what is planned comes early": ("_PROMOTE", "next_run_at <= now()", "next_run_at IS NOT NULL"),
    "expire ends what runs": ("_EXPIRE", "AND status IN ('scheduled', 'pending', 'queued', 'held')", ""),
    "a reaped run spends its attempt": ("_REAP", "THEN 0 ELSE 1 END", "THEN 0 ELSE 0 END"),
    "a reap forgets the wish to cancel": ("_REAP", "WHEN t.cancel_requested_at IS NOT NULL THEN 'cancelled'", "", " OR t.cancel_requested_at IS NOT NULL", ""),
    "a reap takes the worker and leaves its tasks": ("_REAP", "AND t.status = 'running' ORDER", "AND false ORDER"),
    "a reap finds nobody silent": ("_SILENT", "beat_at < now() - :silence", "now() < beat_at - :silence"),
    "progress heeds no fence": ("_PROGRESS", "AND t.fence = said.fence", "", "AND t.fence = mine.fence", ""),
    "an update of times reaches what is held": ("_UPDATE", "moves AND t.status <> 'held'", "moves"),
    "routes heed no priority": ("_FINISH", "AND told.priority >= r.min_priority", ""),
    "routes heed no type": ("_CLAIM", "AND (r.type_pattern IS NULL OR told.type ~ r.type_pattern)", ""),
    "a lost run is not announced": ("_REAP", "ELSE 'task.lost' END", "END"),
}
ALWAYS = (
    "finish heeds no fence",
    "finish heeds no status",
    "a lost run spends its attempt",
    "cancel heeds no status",
    "hold takes what runs",
    "a claim needs no live worker",
    "a dispatch heeds no pause",
    "expire ends what runs",
    "a reap takes the worker and leaves its tasks",
    "routes heed no priority",
)
CHOSEN = MUTATIONS if os.environ.get("TASKYARD_MUTATIONS") == "all" else ALWAYS
FEW = settings(SETTINGS, max_examples=500, phases=[Phase.generate], report_multiple_bugs=False)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutation", CHOSEN)
def test_a_guard_that_is_gone_is_missed(shared_engine: Engine, postgres_kind: str, mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if postgres_kind != "embedded":
        pytest.skip("once is enough")
    name, *swaps = MUTATIONS[mutation]
    statement = getattr(lifecycle, name)
    verb = statement if isinstance(statement, lifecycle._Verb) else None
    mutated = str((verb.one if verb else statement).text)
    for old, new in zip(swaps[::2], swaps[1::2], strict=True):
        assert old in mutated, f"{name} has no {old!r}"
        mutated = mutated.replace(old, new)
    monkeypatch.setattr(lifecycle, name, replace(verb, one=text(mutated)) if verb else text(mutated))
    with pytest.raises((AssertionError, IntegrityError)):
        run(shared_engine, 3, FEW)
