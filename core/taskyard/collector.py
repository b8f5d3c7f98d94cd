"""Python's collector of cyclic garbage, and what it need not look at."""

from __future__ import annotations

import gc

#: Containers that a process of ours makes until the youngest of them are looked through; Python's own 700 (2,000 since 3.13) are made and
#: dropped for each bundle of tasks.
YOUNG = 20_000


def spare_what_is_loaded(young: int | None = YOUNG) -> None:
    """Take all that is there by now out of the collector's rounds: modules, plugins and settings stay as long as the process does.

    A process that is to fork calls this before, so that its children share those pages for good. ``young`` is for processes that run no
    code but ours; None leaves Python's own threshold.
    See https://docs.python.org/3/library/gc.html#gc.freeze.
    """
    gc.collect()
    gc.freeze()
    if young is not None:
        gc.set_threshold(young, *gc.get_threshold()[1:])
