"""Builders for the control plane: models, nodes and sites that name only what a test is about."""

from collections.abc import Mapping, Sequence

from cortex_proto.catalogue import MIB, Catalogue, Model
from cortex_proto.fleet import Device, LoadRefused, Node, Ready, Replica, ReplicaState, Share
from cortex_proto.ids import InstanceId, ModelId, NodeId
from cortex_proto.placement import Assignment, Desired, Resident
from cortex_scheduler.placement import Room, Site, Tenant

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def model(
    name: str = "m",
    *,
    mib: int | None = None,
    devices: int = 1,
    device_mib: int | None = None,
    pinned_on: tuple[str, ...] = (),
    priority: int | None = None,
) -> Model:
    return Model(
        ModelId(name),
        vram_mb=mib,
        min_devices=devices,
        min_device_vram_mb=device_mib,
        pinned_on=pinned_on,
        residency_priority=priority,
    )


def catalogue(*models: Model, aliases: Mapping[str, ModelId] | None = None) -> Catalogue:
    return Catalogue(models, aliases or {})


def ready(*, idle_s: float = 100.0, running: int = 0, waiting: int = 0) -> Ready:
    return Ready(running, waiting, max_waiting=128, idle_s=idle_s, context=2048)


def replica(
    model: str, node: NodeId, state: ReplicaState | None = None, *, mib: int | Sequence[int] = 0
) -> Replica:
    """Build a replica with `mib` on device 0, or on each device in turn."""
    each = [mib] if isinstance(mib, int) else mib
    shares = tuple(Share(i, m * MIB) for i, m in enumerate(each) if m)
    return Replica(ModelId(model), node, state or ready(), shares)


def node(
    name: NodeId,
    *replicas: Replica,
    free_mib: int | Sequence[int] = 1000,
    total_mib: int = 1000,
    epoch: int = 0,
) -> Node:
    """Build a node with one device, or one for each entry of `free_mib`."""
    each = [free_mib] if isinstance(free_mib, int) else free_mib
    devices = tuple(Device(i, "cpu", "test", total_mib * MIB, free * MIB) for i, free in enumerate(each))
    return Node(name, InstanceId(f"{name}-1"), name, "linux", "6", "0.1.0", devices, replicas, epoch)


def desired(node: NodeId, *models: Model, epoch: int = 1, devices: tuple[int, ...] = (0,)) -> Desired:
    return Desired(node, epoch, tuple(Assignment(m, devices, "test") for m in models))


def resident(
    model: str = "r",
    *,
    mib: int = 100,
    priority: int = 100,
    pinned: bool = False,
    busy: bool = False,
    idle_s: float = 10.0,
) -> Resident:
    return Resident(ModelId(model), mib * MIB, priority, pinned, busy, idle_s)


def tenant(resident: Resident, *, devices: tuple[int, ...] = (0,)) -> Tenant:
    """Give a resident its bytes in equal parts on `devices`."""
    return Tenant(resident, tuple(Share(d, resident.bytes // len(devices)) for d in devices))


def site(
    node: NodeId,
    *tenants: Tenant,
    free_mib: int | Sequence[int] = 1000,
    total_mib: int = 1000,
    need_mib: int = 0,
    guessed: bool = False,
    refused: LoadRefused | None = None,
) -> Site:
    each = [free_mib] if isinstance(free_mib, int) else free_mib
    rooms = tuple(Room(i, total_mib * MIB, free * MIB) for i, free in enumerate(each))
    return Site(node, rooms, tenants, need_mib * MIB, guessed, refused)
