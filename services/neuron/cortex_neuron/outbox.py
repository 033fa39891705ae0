"""What this node sends to gateways: one queue, so that a lease's answer comes behind the frames it counts."""

import asyncio

import structlog

from cortex_kit.bus import Bus
from cortex_proto import subjects
from cortex_proto.errors import CortexError
from cortex_proto.generation import TokenMessage
from cortex_proto.ids import InstanceId, NodeId

log = structlog.get_logger()


class Outbox:
    """Sends in the order of `put`. Meanwhile the caller goes on."""

    def __init__(self, bus: Bus, node: NodeId) -> None:
        self._bus = bus
        self._node = node
        self._queue: asyncio.Queue[tuple[InstanceId, TokenMessage]] = asyncio.Queue()

    def put(self, gateway: InstanceId, message: TokenMessage) -> None:
        """Send `message` to `gateway` behind all earlier ones."""
        self._queue.put_nowait((gateway, message))

    async def flushed(self) -> None:
        """Return when everything put so far has been handed to the bus."""
        await self._queue.join()

    async def send_for_ever(self) -> None:
        """Send what is put. What the bus does not take is lost; the gateway will notice the hole."""
        while True:
            gateway, message = await self._queue.get()
            try:
                await self._bus.publish(subjects.tokens(gateway, self._node, "_"), message)
            except CortexError as error:
                log.warning("frames_lost", gateway=gateway, because=str(error))
            finally:
                self._queue.task_done()
