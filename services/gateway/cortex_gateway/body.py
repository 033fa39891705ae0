"""Reads a request body under a limit, and ends what is done for a client that has left."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import Request
from starlette.types import Receive

from cortex_proto.errors import PayloadTooLargeError


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read the whole body, but give up as soon as it is over the limit; uvicorn throws the rest away.

    Raises:
        PayloadTooLargeError: it is over the limit.
        ClientDisconnect: the client left.
    """
    pieces: list[bytes] = []
    num_bytes = 0
    async for piece in request.stream():
        num_bytes += len(piece)
        if num_bytes > max_bytes:
            raise PayloadTooLargeError(f"the body is over the limit of {max_bytes} bytes")
        pieces.append(piece)
    return b"".join(pieces)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, which the client waits for, and cancel it as soon as the client leaves."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_cancel_when_gone(receive, task))
    try:
        await task
    except asyncio.CancelledError:
        if not watch.done():  # it is the server that stops
            raise
    finally:
        watch.cancel()


async def _cancel_when_gone(receive: Receive, task: asyncio.Future[None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()
