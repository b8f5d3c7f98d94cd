"""The plugin ``demo``: what a newcomer's first tasks answer."""

from __future__ import annotations

import pytest

from taskyard.errors import InvalidInput
from taskyard.testing import assert_plugin_conforms, run_handler
from taskyard_demo import echo, sleep


def test_the_plugin_conforms() -> None:
    assert_plugin_conforms("demo")


def test_echo_says_the_text_back() -> None:
    run = run_handler(echo, {"text": "grüezi"})
    assert (run.status, run.result) == ("succeeded", {"text": "grüezi"})


def test_sleep_tells_how_far_it_is() -> None:
    run = run_handler(sleep, {"seconds": 0.3})
    fractions = [fraction or 0.0 for fraction, _ in run.progress]
    assert run.status == "succeeded"
    assert fractions == sorted(fractions)
    assert 1 < len(fractions) <= 4
    assert run.result["seconds"] >= 0.3


def test_a_sleep_of_no_time_is_fine() -> None:
    assert run_handler(sleep, {"seconds": 0}).status == "succeeded"


def test_a_sleep_ends_at_its_timeout() -> None:
    run = run_handler(sleep, {"seconds": 3600}, timeout=0.2)
    assert (run.status, run.code) == ("failed", "timeout")


@pytest.mark.parametrize("payload", [{"seconds": -1}, {"seconds": 3601}, {"seconds": "soon"}, {"second": 1}])
def test_a_wrong_sleep_is_refused_with_its_place(payload: dict[str, object]) -> None:
    with pytest.raises(InvalidInput) as refused:
        run_handler(sleep, payload)
    assert refused.value.problems[0][0].startswith("/second")
