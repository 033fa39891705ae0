"""What this node says of itself on the bus, put together from what its parts know. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from cortex_neuron.hardware import Hardware
from cortex_neuron.memory import Ledger
from cortex_neuron.residents import Phase, Resident, Residents
from cortex_proto.fleet import Device, Draining, Loading, Node, Ready, Replica, ReplicaState
from cortex_proto.ids import InstanceId, ModelId, NodeId


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a loaded model is."""

    running: int
    waiting: int
    max_waiting: int
    idle_since_s: float
    context: int


@dataclass(frozen=True, slots=True)
class Identity:
    """What does not change while the neuron runs."""

    id: NodeId
    incarnation: InstanceId
    version: str
    hardware: Hardware


def node(identity: Identity, ledger: Ledger, replicas: tuple[Replica, ...], epoch: int) -> Node:
    """Describe the whole node."""
    hardware = identity.hardware
    return Node(
        id=identity.id,
        incarnation=identity.incarnation,
        hostname=hardware.hostname,
        os=hardware.os,
        kernel=hardware.kernel,
        version=identity.version,
        devices=tuple(
            Device(
                index=device.index,
                kind=device.kind,
                name=device.name,
                total_bytes=ledger.total_bytes(device.index),
                free_bytes=ledger.free_bytes(device.index),
                compute_capability=device.compute_capability,
            )
            for device in hardware.devices
        ),
        replicas=replicas,
        epoch=epoch,
    )


def replicas(
    node: NodeId, residents: Residents, ledger: Ledger, loads: Mapping[ModelId, Load], now_s: float
) -> tuple[Replica, ...]:
    """Describe every model that is here, on its way, or was refused."""
    present = tuple(
        Replica(model, node, _state(resident, loads.get(model), now_s), ledger.shares(model))
        for model, resident in residents.residents.items()
    )
    queued = tuple(Replica(model, node, Loading("queued", 0.0)) for model in residents.queued(now_s))
    refused = tuple(Replica(m, node, refusal.state) for m, refusal in residents.refusals(now_s).items())
    return present + queued + refused


def _state(resident: Resident, load: Load | None, now_s: float) -> ReplicaState:
    num_live = load.running + load.waiting if load else 0
    match resident.phase:
        case Phase.READY if load:
            idle_s = 0.0 if num_live else now_s - load.idle_since_s
            return Ready(load.running, load.waiting, load.max_waiting, idle_s, load.context)
        case Phase.LOADING | Phase.READY:
            return Loading(resident.stage, resident.progress)
        case Phase.DRAINING | Phase.CLOSING:
            return Draining(num_live)
