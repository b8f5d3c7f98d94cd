"""Every verb, in any order, does what the docs say: 1,000 sequences against a model, 500 on each PostgreSQL.

The sequences are the same in each run, so that a red one is red for everybody. ``TASKYARD_SEQUENCES=20000`` tries so many others.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Engine

from taskyard.lifecycle import TRANSITIONS

from . import machine
from .model import MOVES

# Hypothesis' own search makes five of six examples by repeating parts of another one. Here that is so much less variety: as a
# "backend", the same provider of choices is asked for each example anew.
AVAILABLE_PROVIDERS["anew"] = f"{HypothesisProvider.__module__}.{HypothesisProvider.__name__}"
RANDOM = int(os.environ.get("TASKYARD_SEQUENCES", "0"))
SETTINGS = settings(
    max_examples=RANDOM or 500,
    stateful_step_count=12,
    database=None,
    backend="anew",
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def run(engine: Engine, number: int, how: settings) -> set[tuple[str, str, str]]:
    """Run sequences; answers the moves that were made."""
    with machine.on(engine) as sequence:
        run_state_machine_as_test(sequence if RANDOM else seed(number)(sequence), settings=how)
        return sequence.moved


def test_the_models_moves_are_the_transition_table() -> None:
    assert {verb: {(start, end) for start, ends in table.items() for end in ends} for verb, table in TRANSITIONS.items()} == MOVES


@pytest.mark.timeout(600)
def test_every_verb_in_any_order_does_what_the_docs_say(shared_engine: Engine, postgres_kind: str) -> None:
    moved = run(shared_engine, len(postgres_kind), SETTINGS)
    table = {(verb, start, end) for verb, moves in MOVES.items() for start, end in moves}
    assert table - moved == set(), "every move of the table was made"
