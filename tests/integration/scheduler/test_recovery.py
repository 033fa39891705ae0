"""What survives: restarts of the scheduler and of the server, a wiped store, a rival, another catalogue."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from builders.control import ensure, ensure_placed, scheduling, status
from builders.fleet import A, model
from builders.nodes import WAIT_S, ScriptedNode
from conftest import BusFactory, NatsServer
from cortex_kit.bus import Bus
from cortex_kit.kv import Kv
from cortex_proto import subjects
from cortex_proto.catalogue import Model
from cortex_proto.errors import BusError, UnavailableError
from cortex_proto.ids import ModelId
from cortex_proto.placement import Desired, Epoch, Placed
from cortex_scheduler.books import DeposedError

X, Y = model("org/x", mib=300), model("org/y", mib=300)
SIZES = {"org/x": 300, "org/y": 300}


async def loaded_node(bus: Bus, *models: Model) -> ScriptedNode:
    """Start a node and have these models loaded on it."""
    node = await ScriptedNode(bus, A, sizes_mib=SIZES).start()
    for wanted in models:
        await ensure_placed(bus, wanted)
    await node.until(lambda n: n.ready() == [m.id for m in models])
    return node


async def desired_models(kv: Kv) -> list[ModelId]:
    entry = await kv.get(subjects.desired(A))
    assert entry is not None
    return [a.model.id for a in entry.value.assignments]


async def test_a_restart_raises_the_epoch_and_keeps_what_should_run(
    bus_factory: BusFactory, bus: Bus, tmp_path: Path
) -> None:
    async with scheduling(await bus_factory("scheduler"), tmp_path, X, Y):
        node = await loaded_node(bus, X, Y)

    async with scheduling(await bus_factory("scheduler"), tmp_path, X, Y):
        reply = await ensure(bus, X)
        seen = await status(bus)

    assert reply == Placed(A, "ready on a")
    assert [d.epoch for d in node.heard] == sorted(d.epoch for d in node.heard)
    assert (node.epoch, seen.epoch) == (2, 2)
    assert node.loads == [X.id, Y.id]
    assert seen.models[0].because == "tightest of 1 nodes with room: needs 300 MiB of 1000 MiB free on a"


async def test_a_second_scheduler_puts_the_first_out_of_office(
    bus_factory: BusFactory, bus: Bus, tmp_path: Path
) -> None:
    in_office = asyncio.Event()
    first = asyncio.create_task(hold_office(await bus_factory("scheduler"), tmp_path, in_office))
    await asyncio.wait_for(in_office.wait(), WAIT_S)
    node = await loaded_node(bus, X)

    async with scheduling(await bus_factory("scheduler"), tmp_path, X, Y):
        with pytest.raises(DeposedError, match="epoch 2 took office; ours is 1"):
            await asyncio.wait_for(first, WAIT_S)
        await ensure_placed(bus, Y)
        await node.until(lambda n: n.ready() == [X.id, Y.id])

    assert [d.epoch for d in node.heard] == sorted(d.epoch for d in node.heard)
    assert node.epoch == 2


async def hold_office(bus: Bus, folder: Path, in_office: asyncio.Event) -> None:
    """Run a scheduler until it is deposed."""
    async with scheduling(bus, folder, X, Y):
        in_office.set()
        await asyncio.Event().wait()


async def test_a_deposed_scheduler_cannot_decide(bus_factory: BusFactory, bus: Bus, tmp_path: Path) -> None:
    """Even before it has heard of the other: its write fails, and it goes."""
    in_office = asyncio.Event()
    first = asyncio.create_task(hold_office(await bus_factory("scheduler"), tmp_path, in_office))
    await asyncio.wait_for(in_office.wait(), WAIT_S)
    await (await loaded_node(bus, X)).go_deaf()
    kv = Kv(bus)
    meta, document = await kv.get(subjects.EPOCH), await kv.get(subjects.desired(A))
    assert meta is not None
    assert document is not None
    await kv.update(subjects.EPOCH, Epoch(7), revision=meta.revision)
    rival = await kv.update(subjects.desired(A), Desired(A, 7), revision=document.revision)

    with pytest.raises(UnavailableError, match="epoch 7 took office"):
        await ensure(bus, Y)
    with pytest.raises(DeposedError):
        await asyncio.wait_for(first, WAIT_S)

    after = await kv.get(subjects.desired(A))
    assert after is not None
    assert after.revision == rival


async def test_a_model_that_left_the_catalogue_leaves_its_node(
    bus_factory: BusFactory, bus: Bus, tmp_path: Path
) -> None:
    async with scheduling(await bus_factory("scheduler"), tmp_path, X, Y):
        node = await loaded_node(bus, X, Y)

    async with scheduling(await bus_factory("scheduler"), tmp_path, Y):
        await node.until(lambda n: n.ready() == [Y.id])


async def test_a_server_restart_heals(
    nats_server: NatsServer, bus_factory: BusFactory, bus: Bus, kv: Kv, tmp_path: Path
) -> None:
    async with scheduling(await bus_factory("scheduler"), tmp_path, X, Y):
        node = await loaded_node(bus, X)

        async with cut_off(bus):
            nats_server.restart()
        await until_reported(node)
        await ensure_placed(bus, Y)
        await node.until(lambda n: n.ready() == [X.id, Y.id])

        assert node.loads == [X.id, Y.id]
        assert node.epoch == 1


async def test_a_server_that_lost_everything_is_told_again(
    nats_server: NatsServer, bus_factory: BusFactory, bus: Bus, kv: Kv, tmp_path: Path
) -> None:
    async with scheduling(await bus_factory("scheduler"), tmp_path, X, Y):
        node = await loaded_node(bus, X)

        async with cut_off(bus):
            wipe(nats_server)
        await until_reported(node)
        await ensure_placed(bus, Y)
        await node.until(lambda n: n.ready() == [X.id, Y.id])

        assert await desired_models(kv) == [X.id, Y.id]
        assert node.loads == [X.id, Y.id]


async def test_what_an_absent_node_should_hold_is_written_again(
    nats_server: NatsServer, bus_factory: BusFactory, bus: Bus, kv: Kv, tmp_path: Path
) -> None:
    async with scheduling(await bus_factory("scheduler"), tmp_path, X, Y):
        node = await loaded_node(bus, X)
        await node.leave()

        async with cut_off(bus):
            wipe(nats_server)

        assert await until_written(kv) == [X.id]


async def test_a_new_scheduler_on_a_wiped_server_learns_from_the_nodes(
    nats_server: NatsServer, bus_factory: BusFactory, bus: Bus, kv: Kv, tmp_path: Path
) -> None:
    async with scheduling(await bus_factory("scheduler"), tmp_path, X, Y):
        node = await loaded_node(bus, X)
    async with scheduling(await bus_factory("scheduler"), tmp_path, X, Y):
        await node.until(lambda n: n.epoch == 2)

    async with cut_off(bus):
        wipe(nats_server)
    async with scheduling(await bus_factory("scheduler"), tmp_path, X, Y):
        await until_reported(node)
        await node.until(lambda n: n.epoch == 3)
        reply = await ensure(bus, X)

    assert reply == Placed(A, "ready on a")
    assert await desired_models(kv) == [X.id]
    assert node.loads == [X.id]


def wipe(nats_server: NatsServer) -> None:
    """Let the server crash and lose its disk."""
    nats_server.kill()
    shutil.rmtree(nats_server.store)
    nats_server.start()


@asynccontextmanager
async def cut_off(bus: Bus) -> AsyncIterator[None]:
    """Leave when `bus` is connected again."""
    back = asyncio.Event()

    async def note() -> None:
        back.set()

    bus.on_reconnect(note)
    yield
    await asyncio.wait_for(back.wait(), WAIT_S)


async def until_written(kv: Kv) -> list[ModelId]:
    """Read the desired document again and again until there is one."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with suppress(BusError):
                if await kv.get(subjects.desired(A)):
                    return await desired_models(kv)


async def until_reported(node: ScriptedNode) -> None:
    """Report again, as a neuron does after a reconnect, until the bucket is there to take it."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await node.report()
            except BusError:
                continue
