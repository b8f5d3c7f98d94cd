"""How numbers that all namespaces share are shown: as ids that tell nothing of each other."""

from __future__ import annotations

import itertools

import pytest

from taskyard.ids import PLAIN, PublicIds

IDS = PublicIds(b"k" * 32)
NUMBERS = [*range(300), 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 2, 2**63 - 1]


def test_what_is_shown_leads_back_and_is_an_id_that_fits_a_bigint() -> None:
    shown = [IDS.hide(number) for number in NUMBERS]
    assert [IDS.reveal(each) for each in shown] == NUMBERS
    assert all(0 <= each < 2**63 for each in shown)
    assert len(set(shown)) == len(NUMBERS)


@pytest.mark.parametrize("secret", [b"k" * 32, b"l" * 32])
def test_neighbours_are_shown_without_order_and_far_apart(secret: bytes) -> None:
    shown = [PublicIds(secret).hide(number) for number in range(1, 1001)]
    steps = [after - before for before, after in itertools.pairwise(shown)]
    assert 350 < sum(step > 0 for step in steps) < 650
    assert min(map(abs, steps)) > 2**40
    assert 0.4 < sum(each >= 2**62 for each in shown) / len(shown) < 0.6


def test_another_installation_shows_other_ids_and_without_a_secret_numbers_are_plain() -> None:
    assert IDS.hide(7) != PublicIds(b"l" * 32).hide(7)
    assert (PLAIN.hide(7), PLAIN.reveal(7)) == (7, 7)
