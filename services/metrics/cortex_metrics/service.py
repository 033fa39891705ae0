"""The shell of the metrics service: hears the bus, keeps the aggregate, answers HTTP."""

import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_kit.http import serving
from cortex_kit.service import Context
from cortex_kit.telemetry import Telemetry
from cortex_metrics.aggregate import Aggregate, Ignored, Refused, Taken
from cortex_metrics.exposition import CONTENT_TYPE, exposition
from cortex_metrics.fleet import FleetView, NodeView, view_source
from cortex_proto.fleet import NODE_LIMIT_S, Node
from cortex_proto.ids import NodeId
from cortex_proto.subjects import ANY_METRICS, ANY_NODE
from cortex_proto.telemetry import SNAPSHOTS_LOST, SNAPSHOTS_REFUSED, Event, Snapshot
from cortex_proto.wire import from_json, to_json

log = structlog.get_logger()

_MAX_EVENTS = 100


@asynccontextmanager
async def run(context: Context) -> AsyncIterator[None]:
    """Listen to the bus and serve HTTP until the block is left."""
    ear = Ear(context.telemetry)
    await context.bus.hear_raw(ANY_METRICS, ear.hear)
    await context.bus.hear(ANY_NODE, ear.hear_node)
    async with serving(_app(ear, context), context.settings.metrics.listen):
        yield


class Ear:
    """Everything heard so far."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._aggregate = Aggregate()
        self._nodes: dict[NodeId, tuple[float, Node]] = {}
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)

    async def hear(self, subject: str, payload: bytes) -> None:
        """Take in a record: a snapshot counts, an event is kept to be looked at."""
        try:
            if subject.endswith(".snapshot"):
                self._count(from_json(payload, Snapshot))
            else:
                self._events.append(from_json(payload, Event))
        except (msgspec.DecodeError, RecursionError) as error:
            self._refuse(subject, str(error))

    async def hear_node(self, node: Node, _subject: str) -> None:
        """Remember the last word of a node, and forget those that fell silent."""
        now_s = time.monotonic()
        self._nodes[node.id] = (now_s, node)
        self._nodes = {n: word for n, word in self._nodes.items() if now_s - word[0] <= NODE_LIMIT_S}

    def metrics(self) -> bytes:
        """Write the totals for Prometheus."""
        return exposition(self._aggregate.totals(time.monotonic()))

    def fleet(self) -> FleetView:
        """Show what was heard last."""
        now_s = time.monotonic()
        sources = self._aggregate.sources().items()
        return FleetView(
            sources=[view_source(source, heard, now_s) for source, heard in sources],
            nodes=[NodeView(round(now_s - at_s, 1), node) for at_s, node in self._nodes.values()],
            events=list(self._events),
        )

    def _count(self, snapshot: Snapshot) -> None:
        match self._aggregate.take(snapshot, time.monotonic()):
            case Taken(lost=lost, dropped=dropped):
                if lost:
                    self._telemetry.count(SNAPSHOTS_LOST, lost)
                if dropped:
                    self._refuse(snapshot.instance, f"{dropped} series are over the budget")
            case Refused(because=because):
                self._refuse(snapshot.instance, because)
            case Ignored():
                pass

    def _refuse(self, sender: str, because: str) -> None:
        self._telemetry.count(SNAPSHOTS_REFUSED)
        log.warning("snapshot_refused", sender=sender, because=because)


def _app(ear: Ear, context: Context) -> Starlette:
    async def metrics(_request: Request) -> Response:
        return Response(ear.metrics(), media_type=CONTENT_TYPE)

    async def fleet(_request: Request) -> Response:
        return Response(to_json(ear.fleet()), media_type="application/json")

    async def health(_request: Request) -> Response:
        if context.bus.is_connected:
            return Response(to_json({"status": "ok"}), media_type="application/json")
        lost = {"status": "degraded", "because": "the bus is not connected, so totals stand still"}
        return Response(to_json(lost), status_code=503, media_type="application/json")

    return Starlette(
        routes=[Route("/metrics", metrics), Route("/fleet", fleet), Route("/health", health)],
    )
