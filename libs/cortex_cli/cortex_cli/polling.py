"""Waiting for something in another process that nobody will tell us about."""

import asyncio
from collections.abc import Awaitable, Callable

_POLL_S = 0.05


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again until `holds`; the caller sets the bound."""
    while not await holds():  # noqa: ASYNC110 - an Event does not reach across processes
        await asyncio.sleep(_POLL_S)
