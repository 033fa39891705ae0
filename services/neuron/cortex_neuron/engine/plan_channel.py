"""How plans get from the leader to the other ranks: over TCP, each in a frame of its own.

A connection begins with proofs of the secret in both directions: the leader sends a nonce, the
follower its rank, a nonce of its own and a MAC of all three, the leader a MAC under another label.
Then only frames of MessagePack flow, from the leader to the follower. Whoever leaves, closes.
"""

import contextlib
import hmac
import secrets
import socket
from dataclasses import replace
from typing import Self

import msgspec

from cortex_neuron.engine.messages import Unframer, frame
from cortex_neuron.engine.plan import Plan
from cortex_proto.errors import EngineError

HANDSHAKE_LIMIT_S = 10.0
_NONCE_BYTES = 32
_MAC_BYTES = 32
_RANK_BYTES = 2
_CHUNK_BYTES = 1 << 16
_plan = msgspec.msgpack.Decoder(Plan)


class PlanSender:
    """The leader's end: one connection to each follower; none if it is alone."""

    def __init__(self, followers: tuple[socket.socket, ...] = ()) -> None:
        self._followers = followers

    @classmethod
    def accept(cls, listener: socket.socket, world: int, secret: bytes) -> Self:
        """Wait until all followers have proved that they know `secret`; others are sent away."""
        followers: dict[int, socket.socket] = {}
        while len(followers) < world - 1:
            connection, _ = listener.accept()
            rank = _admit(connection, secret)
            if rank is None or rank in followers or not 0 < rank < world:
                connection.close()
            else:
                followers[rank] = connection
        return cls(tuple(followers.values()))

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to send to."""
        return not self._followers

    def send(self, plan: Plan) -> None:
        """Tell all followers to compute `plan`; how tokens are drawn is the leader's business.

        Raises:
            OSError: one is gone.
        """
        if self.is_alone:
            return
        message = frame(replace(plan, rows=tuple(replace(row, draw=None) for row in plan.rows)))
        for follower in self._followers:
            follower.sendall(message)

    def close(self) -> None:
        """Let the followers leave."""
        for follower in self._followers:
            follower.close()


class PlanReceiver:
    """A follower's end."""

    def __init__(self, leader: socket.socket) -> None:
        self._leader = leader
        self._unframer = Unframer()
        self._arrived: list[bytes] = []

    @classmethod
    def connect(cls, address: tuple[str, int], rank: int, secret: bytes) -> Self:
        """Connect to the leader.

        Raises:
            EngineError: it does not know `secret`.
            OSError: it is not there, or closes the connection.
        """
        leader = socket.create_connection(address, timeout=HANDSHAKE_LIMIT_S)
        try:
            _introduce(leader, rank, secret)
        except BaseException:
            leader.close()
            raise
        return cls(leader)

    def receive(self) -> Plan:
        """Wait for the next plan.

        Raises:
            EOFError: the leader has left.
        """
        while not self._arrived:
            try:
                chunk = self._leader.recv(_CHUNK_BYTES)
            except ConnectionError as error:
                raise EOFError from error
            if not chunk:
                raise EOFError
            self._arrived = self._unframer.feed(chunk)
        return _plan.decode(self._arrived.pop(0))

    def close(self) -> None:
        """Leave."""
        self._leader.close()


def _admit(connection: socket.socket, secret: bytes) -> int | None:
    """Give the rank of whoever has connected; None if it does not know the secret."""
    connection.settimeout(HANDSHAKE_LIMIT_S)
    challenge = secrets.token_bytes(_NONCE_BYTES)
    with contextlib.suppress(OSError):
        connection.sendall(challenge)
        claim = _exactly(connection, _RANK_BYTES + _NONCE_BYTES)
        proof = _exactly(connection, _MAC_BYTES)
        if hmac.compare_digest(proof, _mac(secret, b"follower", challenge + claim)):
            connection.sendall(_mac(secret, b"leader", challenge + claim))
            _prepare(connection)
            return int.from_bytes(claim[:_RANK_BYTES], "big")
    return None


def _introduce(leader: socket.socket, rank: int, secret: bytes) -> None:
    challenge = _exactly(leader, _NONCE_BYTES)
    claim = rank.to_bytes(_RANK_BYTES, "big") + secrets.token_bytes(_NONCE_BYTES)
    leader.sendall(claim + _mac(secret, b"follower", challenge + claim))
    if not hmac.compare_digest(_exactly(leader, _MAC_BYTES), _mac(secret, b"leader", challenge + claim)):
        raise EngineError("whoever gives out plans does not know the secret of this cluster")
    _prepare(leader)


def _prepare(connection: socket.socket) -> None:
    """Send at once: a small plan must not wait for the acknowledgement of the one before."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _mac(secret: bytes, label: bytes, said: bytes) -> bytes:
    return hmac.digest(secret, label + said, "sha256")


def _exactly(connection: socket.socket, num_bytes: int) -> bytes:
    received = b""
    while len(received) < num_bytes:
        chunk = connection.recv(num_bytes - len(received))
        if not chunk:
            raise ConnectionResetError("the other end closed the connection during the handshake")
        received += chunk
    return received
