"""Every subject, tied to what travels on it; nothing else may build a subject.

Tokens in a subject: <mkey> = `token(model)`, <nid> = node, <gw> and <inst> = instance of a process,
<sid> = stream. docs/protocol.md is checked against this file.
"""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cortex_proto.catalogue import Catalogue
from cortex_proto.fleet import Node, Replica
from cortex_proto.generation import ControlMessage, Generate, TokenMessage
from cortex_proto.ids import InstanceId, ModelId, NodeId, StreamId, token
from cortex_proto.placement import (
    AskStatus,
    Desired,
    Ensure,
    EnsureReply,
    Epoch,
    FleetStatus,
    MakeRoom,
    MakeRoomReply,
)

M = TypeVar("M")
Ask = TypeVar("Ask")
Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class Topic(Generic[M]):
    """A subject to publish `M` on, or, with wildcards, to hear it on."""

    subject: str
    message: Any


@dataclass(frozen=True, slots=True)
class Call(Generic[Ask, Reply]):
    """A subject to ask on: one `Ask` in, one `Reply` or `Failed` back."""

    subject: str
    ask: Any
    reply: Any


@dataclass(frozen=True, slots=True)
class Key(Generic[M]):
    """One value in a KV bucket. Each write is republished on `cortex.<bucket's word>.<key>`."""

    bucket: str
    name: str
    message: Any


ANY = "*"
NEURONS = "neurons"
"""Queue group of the neurons on `cortex.req.<mkey>.any`."""


def request(model: ModelId, node: NodeId) -> Topic[Generate]:
    """Gateway -> one neuron: generate. The reply subject is `tokens(gateway, "0", stream)`."""
    return Topic(f"cortex.req.{token(model)}.{node}", Generate)


def requests_of(node: NodeId) -> Topic[Generate]:
    """What one neuron hears: requests for it, whatever the model."""
    return Topic(f"cortex.req.{ANY}.{node}", Generate)


def request_any(model: ModelId) -> Topic[Generate]:
    """Gateway -> some neuron that has the model: the fallback while the replica table is cold."""
    return Topic(f"cortex.req.{token(model)}.any", Generate)


def tokens(gateway: InstanceId, node: NodeId | str, stream: StreamId | str) -> Topic[TokenMessage]:
    """Neuron -> gateway: frames; `stream` "_" carries those of many streams."""
    return Topic(f"cortex.tok.{gateway}.{node}.{stream}", TokenMessage)


def control(node: NodeId, stream: StreamId | str) -> Topic[ControlMessage]:
    """Gateway -> neuron: leases and cancels; `stream` "_" concerns many streams, "*" hears all."""
    return Topic(f"cortex.ctl.{node}.{stream}", ControlMessage)


def load(model: ModelId, node: NodeId) -> Topic[Replica]:
    """Neuron -> all: how a replica stands; lossy, 2 Hz and on change."""
    return Topic(f"cortex.load.{token(model)}.{node}", Replica)


ANY_LOAD: Topic[Replica] = Topic("cortex.load.*.*", Replica)

NODES = "CORTEX_NODES"
PLACE = "CORTEX_PLACE"


def node(node: NodeId) -> Key[Node]:
    """What a node says of itself; the bucket forgets it 15 s after the last word."""
    return Key(NODES, node, Node)


ANY_NODE: Topic[Node] = Topic("cortex.node.*", Node)


def desired(node: NodeId) -> Key[Desired]:
    """What should run on a node; only the scheduler writes it."""
    return Key(PLACE, f"desired.{node}", Desired)


def desired_changed(node: NodeId) -> Topic[Desired]:
    """Republished when the scheduler writes `desired(node)`."""
    return Topic(f"cortex.place.desired.{node}", Desired)


EPOCH: Key[Epoch] = Key(PLACE, "meta", Epoch)
CATALOGUE: Key[Catalogue] = Key(PLACE, "catalogue", Catalogue)
CATALOGUE_CHANGED: Topic[Catalogue] = Topic("cortex.place.catalogue", Catalogue)

ENSURE: Call[Ensure, EnsureReply] = Call("cortex.sched.ensure", Ensure, EnsureReply)
STATUS: Call[AskStatus, FleetStatus] = Call("cortex.sched.status", AskStatus, FleetStatus)
MAKE_ROOM: Call[MakeRoom, MakeRoomReply] = Call("cortex.evict.choose", MakeRoom, MakeRoomReply)


def metrics(service: str, instance: InstanceId, kind: str) -> str:
    """Any service -> metrics, people: JSON records; `kind` "snapshot" is cumulative, others are events."""
    return f"cortex.metrics.{service}.{instance}.{kind}"


ANY_METRICS = "cortex.metrics.>"
