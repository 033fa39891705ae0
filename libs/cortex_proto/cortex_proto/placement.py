"""What should run where: the scheduler's documents, and the questions it answers and asks."""

from cortex_proto.catalogue import Model
from cortex_proto.fleet import Node
from cortex_proto.ids import ModelId, NodeId
from cortex_proto.wire import Message


class Assignment(Message, frozen=True):
    """One model that a node should hold."""

    model: Model
    devices: tuple[int, ...]
    """One per rank."""
    because: str


class Desired(Message, frozen=True):
    """All that one node should hold; a node converges to it, and may be told it twice.

    A document with a lower epoch than the last one seen is from a deposed scheduler: ignore it.
    """

    node: NodeId
    epoch: int
    assignments: tuple[Assignment, ...] = ()


class Epoch(Message, frozen=True):
    """KV key `meta`: the number of the scheduler now in office."""

    epoch: int


class Ensure(Message, frozen=True):
    """Gateway -> scheduler: make `model` ready somewhere. Idempotent: ask as often as you like.

    The reply is `EnsureReply`, or `Failed` if that cannot be.
    """

    model: ModelId


class Placed(Message, frozen=True):
    """It is assigned to `node`: ready there, or on its way."""

    node: NodeId
    because: str


class Pending(Message, frozen=True):
    """It must wait for something that will pass, such as a busy model's last request."""

    because: str


EnsureReply = Placed | Pending


class Resident(Message, frozen=True):
    """A model on the node where room is sought."""

    model: ModelId
    bytes: int
    priority: int
    pinned: bool
    busy: bool
    """Requests run or wait on it, or it became ready a moment ago and its first has yet to come."""
    idle_s: float


class MakeRoom(Message, frozen=True):
    """Scheduler -> evictor: who should leave `node` so that `need_bytes` become free?"""

    node: NodeId
    incoming: ModelId
    priority: int
    """Class of the incoming model: it may displace its own class or lower."""
    need_bytes: int
    residents: tuple[Resident, ...]


class Victims(Message, frozen=True):
    """These should leave."""

    models: tuple[ModelId, ...]
    because: str


class NoVictims(Message, frozen=True):
    """Nobody can make enough room. `busy` says that it will be different once requests have ended."""

    because: str
    busy: bool = False


MakeRoomReply = Victims | NoVictims


class AskStatus(Message, frozen=True):
    """CLI -> scheduler: how do things stand?"""


class ModelStatus(Message, frozen=True):
    """One model of the catalogue, and the last decision on it."""

    model: Model
    nodes: tuple[NodeId, ...]
    """Where it is assigned."""
    because: str


class FleetStatus(Message, frozen=True):
    """The fleet as the scheduler sees it."""

    epoch: int
    nodes: tuple[Node, ...]
    models: tuple[ModelStatus, ...]
