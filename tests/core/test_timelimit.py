"""What takes longer than its limit is ended where it stands."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress

import pytest

from taskyard.timelimit import TimeIsUp, limited


@pytest.fixture(autouse=True)
def _no_timer_of_pytests() -> None:
    """pytest-timeout has one of its own, which would do."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def _sleep() -> None:
    time.sleep(3600)


def _spin() -> None:
    while True:
        with suppress(Exception):
            pass


def _wait() -> None:
    threading.Event().wait()


def _swallow() -> None:
    with suppress(BaseException):
        time.sleep(3600)
    time.sleep(3600)


@pytest.mark.parametrize("hang", [_sleep, _spin, _wait, _swallow])
def test_a_hang_is_ended_and_its_place_told(hang: object) -> None:
    assert callable(hang)
    with pytest.raises(TimeIsUp, match=r"\.py:\d+, in ") as caught, limited(0.05):
        hang()
    assert caught.value.place
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_is_quick_is_left_alone_and_the_old_handler_is_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with limited(3600):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("theirs", [1800.0, 7200.0])
def test_somebody_elses_timer_goes_on(theirs: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, theirs)
    with limited(3600):
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 3600
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    assert theirs - 600 < left <= theirs


def test_another_thread_has_no_limit_and_is_not_refused() -> None:
    done: list[int] = []

    def work() -> None:
        with limited(0.001):
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]
