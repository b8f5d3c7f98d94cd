"""The tasks ``demo.echo`` and ``demo.sleep``: to try an installation with, and to watch a task while it runs."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel, ConfigDict, Field

from taskyard import Context, handler, hookimpl

#: Progress reports of one sleep, at most; and seconds between two of them, at least.
REPORTS = 20
LEAST_STEP = 0.1


class Words(BaseModel):
    """What is said, and said back."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text": "hello"}]})

    text: str = Field(max_length=10_000, description="Any text.", examples=["hello"])


class Sleep(BaseModel):
    """How long to sleep."""

    model_config = ConfigDict(extra="forbid")

    seconds: float = Field(ge=0, le=3600, allow_inf_nan=False, description="Seconds to sleep.", examples=[10])


class Slept(BaseModel):
    """How long it was."""

    seconds: float = Field(description="Seconds slept.")


@handler("demo.echo", timeout=10)
async def echo(payload: Words) -> Words:
    """Say the text back."""
    return payload


@handler("demo.sleep", timeout=3700)
async def sleep(payload: Sleep, ctx: Context) -> Slept:
    """Sleep, and tell how far it is."""
    clock = asyncio.get_running_loop().time
    began = clock()
    step = max(payload.seconds / REPORTS, LEAST_STEP)
    while (left := began + payload.seconds - clock()) > 0:
        ctx.progress(1 - left / payload.seconds, f"{left:.1f} s left")
        await asyncio.sleep(min(step, left))
    return Slept(seconds=round(clock() - began, 3))


@hookimpl
def taskyard_handlers() -> list[object]:
    return [echo, sleep]
