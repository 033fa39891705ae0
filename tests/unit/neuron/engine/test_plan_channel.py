"""Only who knows the secret of a cluster gets its plans, and gets them whole and in order."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial

import pytest

from cortex_neuron.engine.choosing import Choosing
from cortex_neuron.engine.plan import Draw, Plan, PlanRow
from cortex_neuron.engine.plan_channel import PlanReceiver, PlanSender
from cortex_neuron.engine.seat import Alone, Follow, Lead, read_seat, seats, write_seat
from cortex_proto.errors import EngineError
from cortex_proto.ids import StreamId

SECRET = b"s" * 32
LIMIT_S = 20.0
ROW = PlanRow(StreamId("a"), [1, 2, 3], 64, (4, 9), Draw(Choosing(temperature=1.0), 7, 0))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Closes what is entered."""
    with ExitStack() as opened:
        yield opened


class Meeting:
    """A leader that waits for its followers in a thread, and followers that come."""

    def __init__(
        self, listener: socket.socket, threads: ThreadPoolExecutor, opened: ExitStack, world: int
    ) -> None:
        self._listener = listener
        self._opened = opened
        self._sender = threads.submit(PlanSender.accept, listener, world, SECRET)

    def sender(self) -> PlanSender:
        return self._opened.enter_context(closing(self._sender.result(LIMIT_S)))

    def receiver(self, rank: int, secret: bytes = SECRET) -> PlanReceiver:
        connected = PlanReceiver.connect(self._listener.getsockname(), rank, secret)
        return self._opened.enter_context(closing(connected))


Meet = Callable[[int], Meeting]


@pytest.fixture
def meet(listener: socket.socket, threads: ThreadPoolExecutor, opened: ExitStack) -> Meet:
    return partial(Meeting, listener, threads, opened)


def test_plans_reach_every_follower_in_order_without_their_draws(meet: Meet) -> None:
    meeting = meet(3)
    receivers = [meeting.receiver(rank) for rank in (2, 1)]
    sender = meeting.sender()
    plans = [Plan((ROW,), 0), Plan((ROW, replace(ROW, tokens=[5] * 5000)), 1, (StreamId("b"),), "no page")]

    for plan in plans:
        sender.send(plan)

    undrawn = [replace(p, rows=tuple(replace(row, draw=None) for row in p.rows)) for p in plans]
    for receiver in receivers:
        assert [receiver.receive() for _ in plans] == undrawn


def test_the_end_of_the_leader_is_an_end_for_its_followers(meet: Meet) -> None:
    meeting = meet(2)
    receiver = meeting.receiver(1)

    meeting.sender().close()

    with pytest.raises(EOFError):
        receiver.receive()


@pytest.mark.parametrize(("rank", "secret"), [(1, b"guess"), (0, SECRET), (2, SECRET)], ids=str)
def test_an_impostor_is_sent_away_and_the_follower_still_welcome(
    meet: Meet, rank: int, secret: bytes
) -> None:
    meeting = meet(2)

    with pytest.raises((OSError, EOFError)):
        meeting.receiver(rank, secret).receive()
    receiver = meeting.receiver(1)

    meeting.sender().send(Plan((), 0))
    assert receiver.receive() == Plan((), 0)


def test_a_leader_that_does_not_know_the_secret_is_not_followed(
    listener: socket.socket, threads: ThreadPoolExecutor
) -> None:
    def pretend() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"n" * 32)
            connection.recv(1000)
            connection.sendall(b"m" * 32)

    pretending = threads.submit(pretend)

    with pytest.raises(EngineError, match="does not know the secret"):
        PlanReceiver.connect(listener.getsockname(), 1, SECRET)
    pretending.result(LIMIT_S)


def test_seats_lead_to_each_other_and_survive_the_pipe() -> None:
    with seats(3) as (lead, *follow):
        assert isinstance(lead, Lead)
        listening = [socket.socket(fileno=descriptor) for descriptor in lead.sockets]
        ports = [listener.getsockname()[1] for listener in listening]
        for listener in listening:
            listener.detach()
        assert [(f.rank, [f.store_port, f.plan_port]) for f in follow if isinstance(f, Follow)] == [
            (1, ports),
            (2, ports),
        ]
        assert [read_seat(write_seat(seat)) for seat in (lead, *follow)] == [lead, *follow]


def test_who_is_alone_needs_nobody() -> None:
    with seats(1) as given:
        assert given == (Alone(),)

    PlanSender().send(Plan((ROW,), 0))
