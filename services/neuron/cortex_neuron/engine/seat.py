"""Which rank of a cluster a process is, and how it finds the others.

The neuron opens the sockets at which the ranks meet and hands them to the leader, so nobody can
take the place of a leader, and no port is guessed. Seats carry a secret: they are given over a
pipe, never on a command line.
"""

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from cortex_proto.wire import Message

_LOOPBACK = "127.0.0.1"
_SECRET_BYTES = 32


class Alone(Message, frozen=True):
    """The only rank."""

    rank: int = 0
    world: int = 1
    sockets: tuple[int, ...] = ()


class Lead(Message, frozen=True):
    """Rank 0 of several: schedules, samples, and tells the others what to compute."""

    world: int
    store_socket: int
    """A listening socket by its file descriptor, where torch's processes will find each other."""
    plan_socket: int
    """Another one, where the leader gives out plans."""
    secret: bytes
    rank: int = 0

    @property
    def sockets(self) -> tuple[int, ...]:
        """What the process must inherit."""
        return self.store_socket, self.plan_socket


class Follow(Message, frozen=True):
    """One of the others."""

    rank: int
    world: int
    host: str
    store_port: int
    plan_port: int
    secret: bytes
    sockets: tuple[int, ...] = ()


Seat = Alone | Lead | Follow


@contextmanager
def seats(world: int) -> Iterator[tuple[Seat, ...]]:
    """Give the seats of a cluster on this machine; its processes must be started within the block."""
    if world == 1:
        yield (Alone(),)
        return
    secret = secrets.token_bytes(_SECRET_BYTES)
    with _listener(world) as store, _listener(world) as plans:
        lead = Lead(world, store.fileno(), plans.fileno(), secret)
        ports = store.getsockname()[1], plans.getsockname()[1]
        yield lead, *(Follow(rank, world, _LOOPBACK, *ports, secret) for rank in range(1, world))


def write_seat(seat: Seat) -> bytes:
    """Write `seat` for the pipe."""
    return msgspec.msgpack.encode(seat)


def read_seat(payload: bytes) -> Seat:
    """Read back what `write_seat` wrote."""
    seat: Seat = msgspec.msgpack.decode(payload, type=Seat)
    return seat


def _listener(world: int) -> socket.socket:
    return socket.create_server((_LOOPBACK, 0), backlog=world)
