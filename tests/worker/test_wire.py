"""Messages between the worker's processes arrive whole, however the socket cuts them."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from taskyard_worker.wire import Messages, pack

SAID = st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.none(), max_size=4)


@given(st.lists(SAID, max_size=8), st.lists(st.integers(0, 200), max_size=12))
def test_messages_are_told_once_each_in_order_and_as_soon_as_they_are_whole(said: list[dict[str, Any]], cuts: list[int]) -> None:
    heard: list[dict[str, Any]] = []
    ends: list[None] = []
    channel = Messages(heard.extend, lambda: ends.append(None))
    stream = b"".join(map(pack, said))
    begin = 0
    for cut in [*sorted(cuts), len(stream)]:
        channel.data_received(stream[begin:cut])
        begin = max(begin, cut)
        assert heard == said[: len(heard)]
        whole = [sum(len(pack(one)) for one in said[: n + 1]) for n in range(len(said))]
        assert len(heard) == sum(end <= begin for end in whole)
    assert (heard, ends) == (said, [])
    channel.connection_lost(None)
    assert ends == [None]
