"""How a rank takes its seat: it joins the group that computes, and the channel that carries plans."""

import socket
from dataclasses import dataclass

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch marks no exports

from cortex_neuron.engine.plan_channel import PlanReceiver, PlanSender
from cortex_neuron.engine.seat import Alone, Follow, Lead, Seat
from cortex_neuron.model.group import LIMIT, SOLO, Group, Peers
from cortex_neuron.model.shard import Shard


@dataclass(frozen=True, slots=True)
class Leading:
    """This rank makes the plans."""

    group: Group
    plans: PlanSender


@dataclass(frozen=True, slots=True)
class Following:
    """This rank is given plans."""

    group: Group
    plans: PlanReceiver


def join(seat: Seat, device: torch.device) -> Leading | Following:
    """Meet the other ranks; waits until all are there.

    Raises:
        EngineError, OSError, RuntimeError: they cannot be reached, or are impostors.
    """
    match seat:
        case Alone():
            return Leading(SOLO, PlanSender())
        case Lead():
            with socket.socket(fileno=seat.plan_socket) as listener:
                plans = PlanSender.accept(listener, seat.world, seat.secret)
            port = _port(seat.store_socket)
            store = TCPStore(
                "127.0.0.1",
                port,
                seat.world,
                is_master=True,
                timeout=LIMIT,
                wait_for_workers=False,
                master_listen_fd=seat.store_socket,
            )
            return Leading(Peers(Shard(0, seat.world), store, device), plans)
        case Follow():
            orders = PlanReceiver.connect((seat.host, seat.plan_port), seat.rank, seat.secret)
            store = TCPStore(seat.host, seat.store_port, seat.world, is_master=False, timeout=LIMIT)
            return Following(Peers(Shard(seat.rank, seat.world), store, device), orders)


def _port(descriptor: int) -> int:
    """Tell where a listening socket listens, and leave it open."""
    listener = socket.socket(fileno=descriptor)
    try:
        port: int = listener.getsockname()[1]
        return port
    finally:
        listener.detach()
