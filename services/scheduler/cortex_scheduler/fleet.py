"""What the scheduler has heard of the nodes, and what follows from it: the sites for a placement.

A state machine without clock or bus: words come in with `now_s`. Bytes come from a node's own
document only, where free memory and shares belong together; how a replica stands comes from the newest
word on it, load reports included.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

import msgspec

from cortex_proto.catalogue import Catalogue, Model
from cortex_proto.fleet import (
    NODE_LIMIT_S,
    NODE_PERIOD_S,
    Device,
    Loading,
    LoadRefused,
    Node,
    Ready,
    Replica,
    ReplicaState,
    Share,
)
from cortex_proto.ids import ModelId, NodeId
from cortex_proto.placement import Assignment, Desired, Resident
from cortex_scheduler.placement import Room, Site, Tenant

Where = tuple[NodeId, ModelId]

REPEAT_LIMIT_S = 2 * NODE_PERIOD_S
"""After a new assignment, an unchanged refusal is taken for an echo of the old one for so long."""
_IDLE_SLACK_S = 0.2


@dataclass(slots=True)
class _Standing:
    """The newest word on one replica."""

    state: ReplicaState
    heard_s: float
    ready_s: float | None = None
    """When it became ready."""
    used: bool = False
    """Whether it has served since."""


@dataclass(slots=True)
class _Refusal:
    """A node's last refusal of a model."""

    state: LoadRefused
    heard_s: float
    final: bool
    """Not to be tried again at once: it is no matter of memory, or the need was known before."""
    echo_until_s: float = inf
    """Until then the same words again are no news."""


@dataclass(slots=True)
class Fleet:
    """All nodes heard of. Owned by one task."""

    catalogue: Catalogue
    min_residence_s: float
    load_retry_s: float
    _nodes: dict[NodeId, Node] = field(default_factory=dict)
    _heard_s: dict[NodeId, float] = field(default_factory=dict)
    _standings: dict[Where, _Standing] = field(default_factory=dict)
    _refusals: dict[Where, _Refusal] = field(default_factory=dict)
    _needed_bytes: dict[Where, int] = field(default_factory=dict)
    """The least that a model needs, from a refusal."""
    _took_bytes: dict[Where, int] = field(default_factory=dict)
    """What it took when there was room."""

    def hear_node(self, node: Node, now_s: float) -> None:
        """Take in what a node says of itself."""
        self._nodes[node.id] = node
        self._heard_s[node.id] = now_s
        named = {r.model for r in node.replicas}
        for where in [w for w in self._standings if w[0] == node.id and w[1] not in named]:
            del self._standings[where]
        for replica in node.replicas:
            self.hear_replica(replica, now_s)

    def hear_replica(self, replica: Replica, now_s: float) -> None:
        """Take in how a replica stands."""
        where = (replica.node, replica.model)
        if replica.node in self._nodes:
            self._heard_s[replica.node] = now_s
        self._standings[where] = _stand(self._standings.get(where), replica.state, now_s)
        match replica.state:
            case LoadRefused() as state:
                self._hear_refusal(where, state, now_s)
            case Loading() if where in self._refusals:
                self._refusals[where].echo_until_s = -inf
            case Ready():
                self._refusals.pop(where, None)
                self._took_bytes[where] = replica.bytes
            case _:
                pass

    def lose_node(self, node: NodeId) -> None:
        """Take in that a node has gone."""
        self._nodes.pop(node, None)
        self._heard_s.pop(node, None)
        for where in [w for w in self._standings if w[0] == node]:
            del self._standings[where]

    def bury(self, now_s: float) -> list[NodeId]:
        """Give up, and return, the nodes not heard of for NODE_LIMIT_S."""
        dead = [n for n in sorted(self._heard_s) if not self.is_alive(n, now_s)]
        for node in dead:
            self.lose_node(node)
        return dead

    def expect(self, nodes: Iterable[NodeId], now_s: float) -> None:
        """Take `nodes` for alive until NODE_LIMIT_S from now: that they were not heard is our own doing."""
        for node in nodes:
            self._heard_s[node] = now_s

    def expect_all(self, now_s: float) -> None:
        """Do so with all nodes that have not been given up: we are cut off, not they."""
        self.expect(tuple(self._heard_s), now_s)

    def note_assigned(self, node: NodeId, model: ModelId, now_s: float) -> None:
        """Take in that a load is tried (again): the echo of an older refusal will not count."""
        if refusal := self._refusals.get((node, model)):
            refusal.echo_until_s = now_s + REPEAT_LIMIT_S

    def is_alive(self, node: NodeId, now_s: float) -> bool:
        """Whether the node was heard of, or expected, within NODE_LIMIT_S."""
        return now_s - self._heard_s.get(node, -inf) < NODE_LIMIT_S

    def nodes(self, now_s: float) -> tuple[Node, ...]:
        """Return the live nodes by id, each replica as the newest word on it has it."""
        alive = [n for _, n in sorted(self._nodes.items()) if self.is_alive(n.id, now_s)]
        return tuple(msgspec.structs.replace(n, replicas=self._replicas(n)) for n in alive)

    def state(self, node: NodeId, model: ModelId) -> ReplicaState | None:
        """Return the newest word on a replica."""
        standing = self._standings.get((node, model))
        return standing.state if standing else None

    def sites(self, model: Model, desired: Mapping[NodeId, Desired], now_s: float) -> tuple[Site, ...]:
        """Return each live node as a place for `model`, given what should run there."""
        return tuple(self._site(n, model, desired.get(n.id), now_s) for n in self.nodes(now_s))

    def refused(self, desired: Desired) -> dict[ModelId, LoadRefused]:
        """Return what is assigned there though the node has refused it since."""
        found = ((a.model.id, self._refusals.get((desired.node, a.model.id))) for a in desired.assignments)
        return {model: refusal.state for model, refusal in found if refusal and refusal.echo_until_s == inf}

    def adopted(self, node: NodeId) -> tuple[Assignment, ...]:
        """Return what is on a node that nobody remembers assigning, to be kept as it is."""
        reported = self._nodes[node].replicas
        there = [r for r in reported if isinstance(r.state, Loading | Ready) and r.shares]
        return tuple(
            Assignment(model, tuple(s.device for s in r.shares), "it was found there")
            for r in there
            if (model := self.catalogue.get(r.model))
        )

    def _hear_refusal(self, where: Where, state: LoadRefused, now_s: float) -> None:
        last = self._refusals.get(where)
        if last and last.state == state and now_s < last.echo_until_s:
            return
        model = self.catalogue.get(where[1])
        declared_bytes = model.declared_bytes if model else 0
        known = max(declared_bytes, self._needed_bytes.get(where, 0))
        self._refusals[where] = _Refusal(state, now_s, final=known >= state.need_bytes)
        if state.need_bytes:
            self._needed_bytes[where] = state.need_bytes

    def _size(self, model: Model, node: NodeId) -> tuple[int, bool]:
        """Return what `model` takes on `node`, 0 if unknown, and whether that is a guess.

        What the catalogue declares and what the node itself asked for is certain. What the model
        took there with room to spare, or the least that is known of another node, is a guess.
        """
        where = (node, model.id)
        if certain := max(model.declared_bytes, self._needed_bytes.get(where, 0)):
            return certain, False
        known = [
            b
            for sizes in (self._needed_bytes, self._took_bytes)
            for (_, m), b in sizes.items()
            if m == model.id
        ]
        guess = self._took_bytes.get(where) or min(known, default=0)
        return guess, guess > 0

    def _replicas(self, node: Node) -> tuple[Replica, ...]:
        shares = {r.model: r.shares for r in node.replicas}
        return tuple(
            Replica(model, node.id, standing.state, shares.get(model, ()))
            for (where, model), standing in self._standings.items()
            if where == node.id
        )

    def _site(self, node: Node, model: Model, desired: Desired | None, now_s: float) -> Site:
        assignments = desired.assignments if desired else ()
        reported = {r.model: r.shares for r in node.replicas if r.bytes}
        staying = {a.model.id: reported.get(a.model.id) or self._promise(a, node.id) for a in assignments}
        leaving = [s for m, shares in reported.items() if m not in staying for s in shares]
        promised = [s for m, shares in staying.items() if m not in reported for s in shares]
        rooms = tuple(_room(d, leaving, promised) for d in node.devices)
        tenants = tuple(self._tenant(a.model, node.id, staying[a.model.id], now_s) for a in assignments)
        need_bytes, guessed = self._size(model, node.id)
        return Site(node.id, rooms, tenants, need_bytes, guessed, self._block(node.id, model, now_s))

    def _promise(self, assignment: Assignment, node: NodeId) -> tuple[Share, ...]:
        each = -(-self._size(assignment.model, node)[0] // len(assignment.devices))
        return tuple(Share(d, each) for d in assignment.devices)

    def _tenant(self, model: Model, node: NodeId, shares: tuple[Share, ...], now_s: float) -> Tenant:
        busy, idle_s = self._use(self._standings.get((node, model.id)), now_s)
        num_bytes = sum(s.bytes for s in shares)
        pinned = model.is_pinned_on(node)
        return Tenant(Resident(model.id, num_bytes, model.priority, pinned, busy, idle_s), shares)

    def _use(self, standing: _Standing | None, now_s: float) -> tuple[bool, float]:
        """Whether a replica is busy, and for how long it has been idle.

        One that is not ready yet is busy: somebody waits for it. So is one that became ready less than
        `min_residence_s` ago and has not served since.
        """
        if standing is None or not isinstance(standing.state, Ready) or standing.ready_s is None:
            return True, 0.0
        ready = standing.state
        fresh = not standing.used and now_s - standing.ready_s < self.min_residence_s
        if fresh or ready.running or ready.waiting:
            return True, 0.0
        return False, ready.idle_s + now_s - standing.heard_s

    def _block(self, node: NodeId, model: Model, now_s: float) -> LoadRefused | None:
        refusal = self._refusals.get((node, model.id))
        if refusal and refusal.final and now_s - refusal.heard_s < self.load_retry_s:
            return refusal.state
        return None


def _stand(old: _Standing | None, state: ReplicaState, now_s: float) -> _Standing:
    if not isinstance(state, Ready):
        return _Standing(state, now_s)
    if old is None or old.ready_s is None:
        old = _Standing(state, now_s, ready_s=now_s - state.idle_s)
    assert old.ready_s is not None
    served = now_s - state.idle_s > old.ready_s + _IDLE_SLACK_S
    used = old.used or bool(state.running or state.waiting) or served
    return _Standing(state, now_s, old.ready_s, used)


def _room(device: Device, leaving: Iterable[Share], incoming: Iterable[Share]) -> Room:
    coming_free = sum(s.bytes for s in leaving if s.device == device.index)
    promised = sum(s.bytes for s in incoming if s.device == device.index)
    return Room(device.index, device.total_bytes, device.free_bytes + coming_free - promised)
