"""Where the running cortex is that a command speaks to."""

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from cortex_cli.errors import CliError
from cortex_cli.ports import address
from cortex_kit import logs
from cortex_kit.bus import Bus, connect
from cortex_kit.ids import new_instance
from cortex_kit.settings import Log, Nats, Settings, load

CONNECT_LIMIT_S = 5.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - read from settings, not listened on


def url_of(listen: str) -> str:
    """Return the URL at which something that listens on `listen` is reached from this machine."""
    host, port = address(listen)
    return f"http://{_ANYWHERE.get(host, host)}:{port}"


def endpoint(options: argparse.Namespace) -> str:
    """Return the API's address: --endpoint, else what the settings say."""
    chosen: str | None = options.endpoint
    return (chosen or url_of(load(options.config).gateway.listen)).rstrip("/").removesuffix("/v1")


@asynccontextmanager
async def bus(options: argparse.Namespace) -> AsyncIterator[Bus]:
    """Connect to the bus: --nats, else what the settings say.

    Raises:
        CliError: nobody is there.
    """
    settings = _nats(load(options.config), options.nats)
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                connected = await stack.enter_async_context(cli_bus(settings))
        except TimeoutError as error:
            raise CliError(f"no NATS server answers at {settings.url}. Is cortex running?") from error
        yield connected


def cli_bus(nats: Nats) -> AbstractAsyncContextManager[Bus]:
    """Connect as the command line, waiting for the server as long as it takes."""
    logs.setup("cli", Log(level="error"))
    return connect(nats, service="cli", instance=new_instance("cli"))


def _nats(settings: Settings, url: str | None) -> Nats:
    return Nats(url=url) if url else settings.nats
