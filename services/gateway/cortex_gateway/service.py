"""The gateway as a service: its parts put together, on the bus and on a port."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cortex_gateway.app import make_app
from cortex_gateway.catalogue import known_catalogue
from cortex_gateway.fleet import fleet
from cortex_gateway.generate import Gateway
from cortex_gateway.loads import Loads
from cortex_gateway.queue import Waiting
from cortex_gateway.streams import streams
from cortex_kit.http import serving
from cortex_kit.service import Context


@asynccontextmanager
async def serving_gateway(context: Context) -> AsyncIterator[int]:
    """Serve clients while open; yields the port."""
    options, bus = context.settings.gateway, context.bus
    loads = Loads(bus)
    async with (
        known_catalogue(bus, context.kv) as catalogue,
        fleet(bus, loads.wake) as listening,
        streams(bus) as incoming,
    ):
        await bus.barrier()
        waiting = Waiting(options.max_waiting)
        gateway = Gateway(options, catalogue, listening, loads, incoming, waiting, context.telemetry)
        async with serving(make_app(gateway, bus), options.listen) as port:
            yield port


@asynccontextmanager
async def run(context: Context) -> AsyncIterator[None]:
    """Serve clients while open."""
    async with serving_gateway(context):
        yield
