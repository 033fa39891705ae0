"""The evictor's shell: answers who should leave. It keeps no state, so any of several may answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from cortex_evictor.policy import choose_victims
from cortex_kit.service import Context
from cortex_proto.placement import MakeRoom, MakeRoomReply
from cortex_proto.subjects import MAKE_ROOM

log = structlog.get_logger()

_QUEUE = "evictors"


@asynccontextmanager
async def evictor(context: Context) -> AsyncIterator[None]:
    """Answer while open."""
    strategy = context.settings.eviction.strategy

    async def answer(ask: MakeRoom) -> MakeRoomReply:
        reply = choose_victims(ask, strategy)
        log.info("chosen", node=ask.node, incoming=ask.incoming, because=reply.because)
        return reply

    answering = await context.bus.answer(MAKE_ROOM, answer, queue=_QUEUE)
    await context.bus.barrier()
    yield
    await answering.stop()
