"""What the gateway hears of the fleet: nodes that live, replicas that serve."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from cortex_gateway.routing import Replicas
from cortex_kit.bus import Bus
from cortex_proto.fleet import NODE_LIMIT_S, Node, Replica
from cortex_proto.ids import ModelId, NodeId
from cortex_proto.subjects import ANY_LOAD, ANY_NODE


class Fleet:
    """Feeds the table of replicas, and says when something about a model has changed."""

    def __init__(self, changed: Callable[[ModelId], None]) -> None:
        self.replicas = Replicas()
        self._changed = changed
        self._nodes: dict[NodeId, float] = {}

    @property
    def num_nodes(self) -> int:
        """Nodes heard of lately."""
        now_s = time.monotonic()
        return sum(now_s - heard_s <= NODE_LIMIT_S for heard_s in self._nodes.values())

    def known(self, model: ModelId) -> tuple[Replica, ...]:
        """Return the replicas of `model` heard of lately."""
        return self.replicas.known(model, time.monotonic())

    async def hear_replica(self, replica: Replica, _subject: str) -> None:
        """Take in how a replica stands."""
        now_s = time.monotonic()
        self._nodes[replica.node] = now_s
        self.replicas.hear(replica, now_s)
        self._changed(replica.model)

    async def hear_node(self, node: Node, _subject: str) -> None:
        """Take in that a node lives."""
        self._nodes[node.id] = time.monotonic()


@asynccontextmanager
async def fleet(bus: Bus, changed: Callable[[ModelId], None]) -> AsyncIterator[Fleet]:
    """Listen to the fleet while open."""
    listening = Fleet(changed)
    subscriptions = [
        await bus.hear(ANY_LOAD, listening.hear_replica),
        await bus.hear(ANY_NODE, listening.hear_node),
    ]
    try:
        yield listening
    finally:
        for subscription in subscriptions:
            await subscription.stop()
