"""Ending tasks for certain."""

import asyncio
from typing import Any

_AGAIN_S = 0.25


async def end(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel `tasks`, again and again if need be, and return when all have ended; how they end is ignored.

    Once is not enough: `asyncio.wait_for` of Python 3.11, which nats-py uses inside, swallows a cancellation
    that comes together with the result, and a task that loops then goes on for ever.
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()
