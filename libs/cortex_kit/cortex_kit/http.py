"""HTTP: any ASGI app, served by uvicorn inside the loop that runs already."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, cast

import uvicorn
from starlette.types import ASGIApp

from cortex_kit.settings import SettingsError

if TYPE_CHECKING:
    from uvicorn._types import ASGIApplication

GRACE_S = 5
"""Answers under way may go on for so long after the stop; then they are cancelled."""
_CLEAN_UP_LIMIT_S = 2.0


class _Server(uvicorn.Server):
    """uvicorn, but signals are left alone and one can wait until it serves.

    Inheritance, because uvicorn offers no option for either.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serving = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.serving.set()

    async def cleaned_up(self) -> None:
        """Wait, not for long, until the answers that were cancelled have cleaned up."""
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_CLEAN_UP_LIMIT_S)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, listen: str, *, grace_s: int = GRACE_S) -> AsyncIterator[int]:
    """Serve `app` on "host:port" and yield the real port (":0" takes any free one).

    Leaving stops to accept, waits `grace_s` for answers under way, then cancels them. Lifespan events are
    not sent: what an app needs is built around this.

    Raises:
        SettingsError: the address is none, or is taken.
    """
    listener = _bind(listen)
    port: int = listener.getsockname()[1]
    config = uvicorn.Config(
        cast("ASGIApplication", app),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=grace_s,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve([listener]))
    task.add_done_callback(lambda _: server.serving.set())
    try:
        await server.serving.wait()
        if task.done():
            await task
        yield port
    finally:
        server.should_exit = True
        await task
        await server.cleaned_up()


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise SettingsError(f"listen = {listen!r}: want HOST:PORT, such as 127.0.0.1:8080")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]") or "127.0.0.1", int(port)), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(f"cannot listen on {listen}: {error.strerror}") from error
