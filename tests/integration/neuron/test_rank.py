"""The rank's loop when the model or the device fails under it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing

import pytest
import torch

from builders.checkpoints import write_llama
from builders.engine import limits, request
from cortex_neuron.engine.messages import (
    Broken,
    CancelRequest,
    Ended,
    EngineRequest,
    Event,
    FromRank,
    Refused,
    StepEvents,
    ToRank,
    Unframer,
    frame,
    from_rank,
)
from cortex_neuron.engine.plan import Plan, PlanRow
from cortex_neuron.engine.plan_channel import PlanReceiver, PlanSender
from cortex_neuron.engine.rank import Channel, Rank, follow
from cortex_neuron.engine.runner import Runner
from cortex_neuron.engine.scheduler import Scheduler
from cortex_neuron.model.batch import Batch
from cortex_neuron.model.causal import CausalModel
from cortex_neuron.model.kv import KvPool
from cortex_neuron.model.load import load
from cortex_proto.errors import EngineError
from cortex_proto.ids import StreamId

POISON = 13
LIMIT_S = 30.0
Endings = tuple[type[BaseException], ...]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    """A model that raises on one token."""

    def refuse(_: torch.nn.Module, inputs: tuple[Batch, KvPool]) -> None:
        if (inputs[0].tokens_T == POISON).any():
            raise RuntimeError("poisoned")

    model = load(
        write_llama(tmp_path_factory.mktemp("llama")),
        device="cpu",
        dtype=torch.float32,
        on_progress=lambda *_: None,
    )
    model.register_forward_pre_hook(refuse)
    return model


class Neuron:
    """The other end of a rank's channel; the rank's loop runs in a thread."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._unframer = Unframer()
        self.heard: list[FromRank] = []

    @property
    def events(self) -> list[Event]:
        return [
            event for message in self.heard if isinstance(message, StepEvents) for event in message.events
        ]

    def ends(self) -> dict[str, Ended | Refused]:
        return {event.id: event for event in self.events if isinstance(event, Ended | Refused)}

    def send(self, *messages: ToRank) -> None:
        self._writer.write(b"".join(frame(message) for message in messages))

    async def until(self, heard: Callable[[], bool]) -> None:
        while not heard():
            chunk = await asyncio.wait_for(self._reader.read(65536), LIMIT_S)
            assert chunk, "the rank ended"
            self.heard += [from_rank.decode(payload) for payload in self._unframer.feed(chunk)]


@asynccontextmanager
async def serving(
    model: CausalModel,
    device: str = "cpu",
    endings: Endings = (EOFError, ConnectionError),
    plans: PlanSender | None = None,
) -> AsyncIterator[Neuron]:
    """Serve `model` until the end of the block; the loop must end with one of `endings`."""
    ours, theirs = socket.socketpair()
    runner = Runner(model, KvPool(model.spec, num_pages=64, dtype=torch.float32), torch.device(device))
    rank = Rank(Channel(theirs), runner, Scheduler(limits(vocab_size=512, context=1024)), plans)
    with theirs:
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        loop = asyncio.create_task(asyncio.to_thread(serve, rank))
        try:
            yield Neuron(reader, writer)
        finally:
            writer.close()
            assert issubclass(await asyncio.wait_for(loop, LIMIT_S), endings)


def serve(rank: Rank) -> type[BaseException]:
    """Say how the loop ended; SystemExit would otherwise end pytest."""
    with pytest.raises((EOFError, ConnectionError, SystemExit)) as end:
        rank.serve()
    return end.type


def ask(name: str, *tokens: int, count: int = 5) -> EngineRequest:
    return request(name, tokens, max_tokens=count, ignore_eos=True)


async def test_a_step_that_fails_takes_only_its_own_requests(model: CausalModel) -> None:
    async with serving(model) as neuron:
        neuron.send(ask("poisoned", 3, POISON))
        await neuron.until(lambda: "poisoned" in neuron.ends())
        neuron.send(ask("sound", 3, 4))
        await neuron.until(lambda: "sound" in neuron.ends())

    refused, ended = neuron.ends()["poisoned"], neuron.ends()["sound"]
    assert isinstance(refused, Refused)
    assert refused.error.code == EngineError.code
    assert isinstance(ended, Ended)
    assert ended.output_tokens == 5


async def test_a_device_that_does_not_work_any_more_breaks_the_rank(model: CausalModel) -> None:
    async with serving(model, device="meta", endings=(SystemExit,)) as neuron:  # no tensor there can be read
        neuron.send(ask("a", 3, 4))
        await neuron.until(lambda: any(isinstance(message, Broken) for message in neuron.heard))

    assert isinstance(neuron.ends()["a"], Refused)


async def test_a_step_that_fails_on_the_leader_of_several_breaks_it(model: CausalModel) -> None:
    ours, theirs = socket.socketpair()
    with closing(PlanSender((ours,))) as plans, closing(PlanReceiver(theirs)) as follower:
        async with serving(model, endings=(SystemExit,), plans=plans) as neuron:
            neuron.send(ask("poisoned", 3, POISON))
            await neuron.until(lambda: any(isinstance(message, Broken) for message in neuron.heard))

        assert [row.tokens for row in follower.receive().rows] == [[3, POISON]]
        assert neuron.events == []  # the neuron fails all requests, as ones that may be tried again


def test_a_step_that_fails_on_a_follower_breaks_it(model: CausalModel) -> None:
    runner = Runner(model, KvPool(model.spec, num_pages=4, dtype=torch.float32), torch.device("cpu"))
    neuron, channel = socket.socketpair()
    leader, orders = socket.socketpair()
    with neuron, channel, closing(PlanSender((leader,))) as plans, closing(PlanReceiver(orders)) as receiver:
        for token in (3, POISON):
            plans.send(Plan((PlanRow(StreamId("a"), [token], 0, (1,), None),), 1))

        with pytest.raises(SystemExit):
            follow(Channel(channel), runner, receiver)

        heard = [from_rank.decode(payload) for payload in Unframer().feed(neuron.recv(65536))]

    assert heard == [Broken("a step failed: poisoned")]


async def test_what_arrives_during_a_step_counts_before_the_next(model: CausalModel) -> None:
    async with serving(model) as neuron:
        neuron.send(ask("a", 3, 4, count=200), CancelRequest(StreamId("a")), ask("b", 3, 4))
        await neuron.until(lambda: "b" in neuron.ends())

    ended = neuron.ends()["a"]
    assert isinstance(ended, Ended)
    assert (ended.reason, ended.output_tokens) == ("cancelled", 0)


async def test_the_end_of_the_channel_ends_the_loop_in_the_middle_of_work(model: CausalModel) -> None:
    async with serving(model) as neuron:
        neuron.send(ask("a", 3, 4, count=1000))
        await neuron.until(lambda: bool(neuron.events))
