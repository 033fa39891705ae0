"""From `ensure` to what nodes are told, with a real server, a real evictor and scripted nodes."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from builders.control import ensure, ensure_placed, evicting, scheduling, status
from builders.fleet import A, B, model
from builders.nodes import BUSY, IDLE, WAIT_S, ScriptedNode
from conftest import BusFactory
from cortex_kit.bus import Bus
from cortex_kit.kv import Kv
from cortex_proto import subjects
from cortex_proto.errors import LoadFailedError, ModelUnknownError, NoRoomError
from cortex_proto.fleet import LoadRefused
from cortex_proto.ids import NodeId
from cortex_proto.placement import Pending, Placed
from cortex_proto.telemetry import EVICTIONS, NODES_UP, Decided

X, Y = model("org/x", mib=600), model("org/y", mib=600)
SMALL = model("org/small", mib=100)
UNSIZED = model("org/unsized")
SIZES = {"org/x": 600, "org/y": 600, "org/small": 100, "org/unsized": 600}


async def start_node(bus: Bus, name: NodeId = A, **options: object) -> ScriptedNode:
    return await ScriptedNode(bus, name, sizes_mib=SIZES, **options).start()  # type: ignore[arg-type]


async def test_a_hundred_who_ask_at_once_get_one_load(
    bus_factory: BusFactory, bus: Bus, tmp_path: Path
) -> None:
    async with scheduling(await bus_factory("scheduler"), tmp_path, X):
        a, b = await start_node(bus, A), await start_node(bus, B)

        replies = await asyncio.gather(*(ensure(bus, X) for _ in range(100)))
        await a.until(lambda n: n.ready() == [X.id])

        assert {r.node for r in replies if isinstance(r, Placed)} == {A}
        assert len(replies) == 100
        assert (a.loads, b.loads) == ([X.id], [])


async def test_an_idle_model_makes_room_in_the_same_write(
    bus_factory: BusFactory, bus: Bus, tmp_path: Path
) -> None:
    service = await bus_factory("scheduler")
    events: asyncio.Queue[Decided] = asyncio.Queue()

    async def on_event(_subject: str, payload: bytes) -> None:
        events.put_nowait(msgspec.json.decode(payload, type=Decided))

    await bus.hear_raw(subjects.metrics("scheduler", service.instance, "decided"), on_event)
    async with scheduling(service, tmp_path, X, Y) as telemetry, evicting(await bus_factory("evictor")):
        node = await start_node(bus)
        await ensure_placed(bus, X)
        await node.until(lambda n: n.ready() == [X.id])

        placed = await ensure_placed(bus, Y)
        await node.until(lambda n: n.ready() == [Y.id])

        assert "least recently used: org/x" in placed.because
        assert [[a.model.id for a in d.assignments] for d in node.heard][-2:] == [[X.id], [Y.id]]
        async with asyncio.timeout(WAIT_S):
            decided = [await events.get() for _ in range(3)]
        assert [(d.verb, d.model) for d in decided] == [("place", X.id), ("evict", X.id), ("place", Y.id)]
        counted = [v for v in telemetry.snapshot().values if v.name == EVICTIONS.name]
        assert [(v.value, v.labels) for v in counted] == [(1, {"model": X.id, "node": A})]


async def test_a_pinned_model_stays_and_the_numbers_say_why(
    bus_factory: BusFactory, bus: Bus, tmp_path: Path
) -> None:
    pinned = model("org/x", mib=600, pinned_on=("a",))
    eviction = evicting(await bus_factory("evictor"))
    async with scheduling(await bus_factory("scheduler"), tmp_path, pinned, Y), eviction:
        node = await start_node(bus)
        await ensure_placed(bus, pinned)
        await node.until(lambda n: n.ready() == [X.id])

        with pytest.raises(NoRoomError, match=r"needs 600 MiB .* 400 MiB are free, 0 MiB may be evicted"):
            await ensure(bus, Y)

        assert node.ready() == [X.id]


async def test_a_busy_model_is_waited_for(bus_factory: BusFactory, bus: Bus, tmp_path: Path) -> None:
    eviction = evicting(await bus_factory("evictor"))
    async with scheduling(await bus_factory("scheduler"), tmp_path, X, Y), eviction:
        node = await start_node(bus)
        await ensure_placed(bus, X)
        await node.until(lambda n: n.ready() == [X.id])
        await node.become(X.id, BUSY)
        await bus.barrier()

        assert await ensure(bus, Y) == Pending("a: room can be made once org/x is idle")
        await node.become(X.id, IDLE)
        await ensure_placed(bus, Y)
        await node.until(lambda n: n.ready() == [Y.id])


async def test_without_an_evictor_it_waits(bus_factory: BusFactory, bus: Bus, tmp_path: Path) -> None:
    async with scheduling(await bus_factory("scheduler"), tmp_path, X, Y):
        node = await start_node(bus)
        await ensure_placed(bus, X)
        await node.until(lambda n: n.ready() == [X.id])

        assert await ensure(bus, Y) == Pending("the evictor does not answer")


async def test_a_node_that_refuses_teaches_the_size(
    bus_factory: BusFactory, bus: Bus, tmp_path: Path
) -> None:
    eviction = evicting(await bus_factory("evictor"))
    async with scheduling(await bus_factory("scheduler"), tmp_path, X, UNSIZED), eviction:
        node = await start_node(bus)
        await ensure_placed(bus, X)
        await node.until(lambda n: n.ready() == [X.id])

        await ensure_placed(bus, UNSIZED)
        await node.until(lambda n: n.wanted() == [X.id] and len(n.loads) == 2)
        placed = await ensure_placed(bus, UNSIZED)
        await node.until(lambda n: n.ready() == [UNSIZED.id])

        assert "frees 600 MiB where 200 MiB are needed" in placed.because


async def test_a_bad_file_is_tried_elsewhere_and_then_told(
    bus_factory: BusFactory, bus: Bus, tmp_path: Path
) -> None:
    refusals = {"org/x": LoadRefused("the file is cut short")}
    async with scheduling(await bus_factory("scheduler"), tmp_path, X):
        a = await start_node(bus, A, refusals=refusals)
        b = await start_node(bus, B, refusals=refusals)

        assert (await ensure_placed(bus, X)).node == A
        await a.until(lambda n: n.loads == [X.id] and n.wanted() == [])
        assert (await ensure_placed(bus, X)).node == B
        await b.until(lambda n: n.loads == [X.id] and n.wanted() == [])
        with pytest.raises(LoadFailedError, match="a: the file is cut short; b: the file is cut short"):
            await ensure(bus, X)

        assert (a.loads, b.loads) == ([X.id], [X.id])
        (seen,) = (await status(bus)).models
        assert "the file is cut short" in seen.because


async def test_the_models_of_a_node_that_left_are_placed_elsewhere(
    bus_factory: BusFactory, bus: Bus, tmp_path: Path
) -> None:
    async with scheduling(await bus_factory("scheduler"), tmp_path, X, SMALL) as telemetry:
        a, b = await start_node(bus, A), await start_node(await bus_factory("b"), B)
        await ensure_placed(bus, X)
        await ensure_placed(bus, SMALL)
        await a.until(lambda n: n.ready() == [X.id, SMALL.id])

        await a.leave()
        await bus.barrier()
        placed = await ensure_placed(bus, X)
        await b.until(lambda n: n.ready() == [X.id])
        kept = await Kv(bus).get(subjects.desired(A))

        assert placed.node == B
        assert kept is not None
        assert [m.model.id for m in kept.value.assignments] == [SMALL.id]
        assert [n.id for n in (await status(bus)).nodes] == [B]
        assert [(v.name, v.value) for v in telemetry.snapshot().values] == [(NODES_UP.name, 1)]


async def test_an_alias_will_do_and_status_tells_all(
    bus_factory: BusFactory, bus: Bus, tmp_path: Path
) -> None:
    async with scheduling(await bus_factory("scheduler"), tmp_path, X, Y, aliases='ex = "org/x"'):
        node = await start_node(bus)

        await ensure(bus, "ex")
        await node.until(lambda n: n.ready() == [X.id])
        seen = await status(bus)

        assert seen.epoch == 1
        assert [(m.model.id, m.nodes, m.because) for m in seen.models] == [
            (X.id, (A,), "tightest of 1 nodes with room: needs 600 MiB of 1000 MiB free on a"),
            (Y.id, (), "nobody has asked for it yet"),
        ]


async def test_an_unknown_model_is_refused_at_once(bus_factory: BusFactory, bus: Bus, tmp_path: Path) -> None:
    async with scheduling(await bus_factory("scheduler"), tmp_path, X):
        with pytest.raises(ModelUnknownError, match="no model 'org/z' in the catalogue"):
            await ensure(bus, "org/z")


async def test_a_scheduler_that_has_just_begun_waits_for_the_first_node(
    bus_factory: BusFactory, bus: Bus, tmp_path: Path
) -> None:
    async with scheduling(await bus_factory("scheduler"), tmp_path, X):
        assert await ensure(bus, X) == Pending("no node has reported yet")
