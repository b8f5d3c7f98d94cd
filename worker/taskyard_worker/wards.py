"""In which process an async run goes: with all others, or apart from them if its process died under it before.

A handler that ends its process (a segmentation fault, ``os._exit``) takes all runs beside it along, and nobody knows which one did
it. So all of them are suspects: they run in smaller groups the next time, and then each alone. The innocent are cleared before
their losses are too many, and a process that dies for another reason, with a thousand runs, is not followed by a thousand forks.
"""

from __future__ import annotations

from uuid import UUID

from taskyard_worker.processes import Child, Nursery, Shared

#: Processes for those that were lost once.
GROUPS = 32


class Wards:
    """The async children that run handlers."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self._common = Shared(nursery)
        self._groups = [Shared(nursery, passing=True) for _ in range(GROUPS)]

    async def common(self) -> Child:
        """For runs that were never lost."""
        return await self._common.get()

    async def apart(self, id_: UUID, lost: int) -> Child:
        """For one that was lost ``lost`` times."""
        if lost == 1:
            return await self._groups[id_.int % GROUPS].get()
        child = await self._nursery.fork("async")
        child.passing = True
        return child
