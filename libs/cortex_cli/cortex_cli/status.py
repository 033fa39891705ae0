"""`cortex status`: nodes, devices and models as the scheduler sees them, and why."""

import argparse
import asyncio
from collections.abc import Iterator
from typing import assert_never

from cortex_cli.connection import bus
from cortex_cli.errors import CliError
from cortex_cli.tables import mib, print_json, print_table
from cortex_proto import subjects
from cortex_proto.errors import BusError
from cortex_proto.fleet import Draining, Loading, LoadRefused, Node, Ready, Replica, ReplicaState, Unloaded
from cortex_proto.placement import AskStatus, FleetStatus, ModelStatus

ANSWER_LIMIT_S = 5.0


def run(options: argparse.Namespace) -> int:
    """Print the state of the fleet."""
    fleet = asyncio.run(_ask(options))
    if options.json:
        print_json(fleet)
        return 0
    print_table(
        f"nodes (epoch {fleet.epoch})",
        ("node", "device", "kind", "used", "free", "total"),
        device_rows(fleet),
    )
    print_table("models", ("model", "node", "state", "memory", "because"), model_rows(fleet))
    return 0


async def _ask(options: argparse.Namespace) -> FleetStatus:
    async with bus(options) as connected:
        try:
            return await connected.ask(subjects.STATUS, AskStatus(), timeout_s=ANSWER_LIMIT_S)
        except BusError as error:
            raise CliError(f"no scheduler answers on the bus: {error}") from error


def device_rows(fleet: FleetStatus) -> Iterator[tuple[str, ...]]:
    """List every device: node, device, kind, used, free, total."""
    for node in fleet.nodes:
        for device in node.devices:
            used_bytes = device.total_bytes - device.free_bytes
            name = f"{device.index} {device.name}"
            memory = (mib(used_bytes), mib(device.free_bytes), mib(device.total_bytes))
            yield (node.id, name, device.kind, *memory)


def model_rows(fleet: FleetStatus) -> Iterator[tuple[str, ...]]:
    """List every model where it is, where it shall be, or that it is nowhere: with the reason."""
    for model in fleet.models:
        yield from _rows(model, fleet.nodes)


def _rows(status: ModelStatus, nodes: tuple[Node, ...]) -> Iterator[tuple[str, ...]]:
    replicas = [r for node in nodes for r in node.replicas if r.model == status.model.id]
    for replica in replicas:
        yield (replica.model, replica.node, describe(replica.state), mib(replica.bytes), status.because)
    for node in _waiting(status, replicas):
        yield (status.model.id, node, "assigned", "", status.because)
    if not replicas and not status.nodes:
        yield (status.model.id, "", "not loaded", "", status.because)


def _waiting(status: ModelStatus, replicas: list[Replica]) -> list[str]:
    reported = {replica.node for replica in replicas}
    return [node for node in status.nodes if node not in reported]


def describe(state: ReplicaState) -> str:
    """Say in a few words how a replica stands."""
    match state:
        case Loading(stage=stage, progress=progress):
            return f"loading: {stage} {progress:.0%}"
        case Ready(running=running, waiting=waiting):
            return f"ready, {running} running, {waiting} waiting"
        case Draining(running=running):
            return f"draining, {running} running"
        case LoadRefused(because=because):
            return f"refused: {because}"
        case Unloaded():
            return "unloaded"
    assert_never(state)
