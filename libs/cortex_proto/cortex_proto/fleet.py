"""What a node says of itself: its devices, and the models on it. Advice to all but the node itself."""

from typing import Literal

from cortex_proto.ids import InstanceId, ModelId, NodeId
from cortex_proto.wire import Message

NODE_PERIOD_S = 2.0
"""A node reports this often, and at once when something changes."""
NODE_LIMIT_S = 15.0
"""A node not heard of for so long is taken for dead."""
LOAD_PERIOD_S = 0.5
LOAD_LIMIT_S = 5.0
"""A replica not heard of for so long is no candidate any more."""


class Device(Message, frozen=True):
    """One GPU, or the CPU with its main memory."""

    index: int
    kind: Literal["cpu", "cuda"]
    name: str
    total_bytes: int
    """What cortex may use of it: its memory, or the configured limit."""
    free_bytes: int
    """What the node's ledger has left of that."""
    compute_capability: str | None = None


class Share(Message, frozen=True):
    """What a replica holds of one device."""

    device: int
    bytes: int


class Loading(Message, frozen=True):
    """The replica is on its way."""

    stage: str
    progress: float
    """0 to 1."""


class Ready(Message, frozen=True):
    """The replica serves."""

    running: int
    """Requests in the batch."""
    waiting: int
    """Requests accepted and not yet in the batch."""
    max_waiting: int
    idle_s: float
    """Since the last request ended, or since it was loaded; 0 while busy."""
    context: int
    """Longest prompt plus answer, in tokens."""


class Draining(Message, frozen=True):
    """The replica finishes what it has and then leaves."""

    running: int


class LoadRefused(Message, frozen=True):
    """The replica did not come to be; `because` has the numbers.

    `need_bytes` is 0 unless it was for want of memory.
    """

    because: str
    need_bytes: int = 0
    free_bytes: int = 0


class Unloaded(Message, frozen=True):
    """The replica has gone and its memory is free; said once."""


ReplicaState = Loading | Ready | Draining | LoadRefused | Unloaded
Status = Literal["loading", "loaded", "draining", "refused", "unloaded"]
"""A replica's state in one word, as people and their tools see it."""


class Replica(Message, frozen=True):
    """One model on one node, as the node sees it."""

    model: ModelId
    node: NodeId
    state: ReplicaState
    shares: tuple[Share, ...] = ()

    @property
    def status(self) -> Status:
        """Its state in one word."""
        match self.state:
            case Loading():
                return "loading"
            case Ready():
                return "loaded"
            case Draining():
                return "draining"
            case LoadRefused():
                return "refused"
            case Unloaded():
                return "unloaded"

    @property
    def bytes(self) -> int:
        """What it holds over all devices."""
        return sum(s.bytes for s in self.shares)


class Node(Message, frozen=True):
    """One node, whole: its devices and everything on them."""

    id: NodeId
    incarnation: InstanceId
    """New at each start of the neuron."""
    hostname: str
    os: str
    kernel: str
    version: str
    devices: tuple[Device, ...]
    replicas: tuple[Replica, ...] = ()
    epoch: int = 0
    """Of the newest desired state it has seen."""

    @property
    def free_bytes(self) -> int:
        """Free over all devices."""
        return sum(d.free_bytes for d in self.devices)
