"""Models come and go as the scheduler's document says."""

import asyncio
import os
import signal
import socket
from pathlib import Path

import httpx
import psutil

from builders.neuron import CONTEXT, NODE, WITHIN_S, MakeGateway, Start, Watch
from cortex_proto import subjects
from cortex_proto.errors import Failed, NodeLostError
from cortex_proto.fleet import Draining, Loading, LoadRefused, Node, Ready, Unloaded
from cortex_proto.generation import Accepted, Finished, Limits, TextDelta
from cortex_proto.ids import ModelId

TINY = ModelId("tiny")
ENDLESS = Limits(ignore_eos=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def node_where(watch: Watch, num_replicas: int) -> Node:
    """Wait until the registry shows so many replicas."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            entry = await watch.kv.get(subjects.node(NODE))
            if entry and len(entry.value.replicas) == num_replicas:
                return entry.value
            await watch.news()


def ranks() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "cortex_neuron.engine.rank" in p.cmdline()]


async def test_a_model_is_loaded_shown_and_unloaded(start: Start) -> None:
    watch = await start()

    await watch.want(watch.model())
    await watch.until(Loading)
    report = await watch.until(Ready)

    assert report.bytes > 0
    assert isinstance(report.state, Ready)
    assert report.state.context == CONTEXT
    node = await node_where(watch, num_replicas=1)
    assert node.devices[0].free_bytes == node.devices[0].total_bytes - report.bytes
    assert node.epoch == 1
    assert len(ranks()) == 1

    await watch.want(epoch=2)
    await watch.until(Unloaded)

    node = await node_where(watch, num_replicas=0)
    assert node.devices[0].free_bytes == node.devices[0].total_bytes
    assert ranks() == []


async def test_a_model_that_does_not_fit_is_refused_with_the_numbers(start: Start) -> None:
    watch = await start(memory_limit_mb=100)

    await watch.want(watch.model("huge", vram_mb=5000), watch.model("tiny"))
    huge = (await watch.until(LoadRefused, "huge")).state
    tiny = (await watch.until(LoadRefused, "tiny")).state

    assert isinstance(huge, LoadRefused)
    assert huge.because == "needs 5000 MiB on cpu:0, 100 MiB of 100 MiB free"
    assert (huge.need_bytes >> 20, huge.free_bytes >> 20) == (5000, 100)
    assert isinstance(tiny, LoadRefused)
    assert 100 << 20 < tiny.need_bytes < 1 << 30


async def test_a_model_of_several_devices_or_no_files_is_refused(start: Start, tmp_path: Path) -> None:
    watch = await start()
    watch.path = tmp_path

    await watch.want(watch.model("wide", min_devices=2), watch.model("empty"))

    wide = (await watch.until(LoadRefused, "wide")).state
    empty = (await watch.until(LoadRefused, "empty")).state
    assert isinstance(wide, LoadRefused)
    assert "asks for 2 devices, and was assigned to [0]" in wide.because
    assert isinstance(empty, LoadRefused)
    assert "neither config.json nor a .gguf file" in empty.because


async def test_a_busy_model_drains_and_a_waiting_one_takes_its_room(
    start: Start, make_gateway: MakeGateway
) -> None:
    watch = await start(memory_limit_mb=1024)
    await watch.want(watch.model("old", vram_mb=900))
    await watch.until(Ready, "old")
    gateway = await make_gateway()
    stream = await gateway.generate(ModelId("old"), limits=ENDLESS)
    await gateway.deltas_of(stream, until=TextDelta)

    await watch.want(watch.model("new", vram_mb=900), epoch=2)
    await watch.until(Draining, "old")
    waiting = (await watch.until(Loading, "new")).state
    refused = await gateway.generate(ModelId("old"))
    assert await gateway.deltas_of(refused, until=Failed)
    assert isinstance(waiting, Loading)
    await gateway.cancel(stream)

    await watch.until(Unloaded, "old")
    await watch.until(Ready, "new")


async def test_a_draining_model_that_is_wanted_again_serves_on(
    start: Start, make_gateway: MakeGateway
) -> None:
    watch = await start()
    await watch.want(watch.model())
    await watch.until(Ready)
    pid = ranks()[0].pid
    gateway = await make_gateway()
    stream = await gateway.generate(TINY, limits=ENDLESS)
    await gateway.deltas_of(stream, until=TextDelta)
    await watch.want(epoch=2)
    await watch.until(Draining)

    await watch.want(watch.model(), epoch=3)
    await watch.until(Ready)

    again = await gateway.generate(TINY, to=None, limits=Limits(max_tokens=3))
    await gateway.deltas_of(again, until=Finished)
    assert ranks()[0].pid == pid
    await gateway.cancel(stream)


async def test_a_killed_engine_fails_its_streams_and_is_replaced(
    start: Start, make_gateway: MakeGateway
) -> None:
    watch = await start()
    await watch.want(watch.model())
    await watch.until(Ready)
    gateway = await make_gateway()
    stream = await gateway.generate(TINY, limits=ENDLESS)
    await gateway.deltas_of(stream, until=TextDelta)
    (rank,) = ranks()

    os.kill(rank.pid, signal.SIGKILL)

    failed = (await gateway.deltas_of(stream, until=Failed))[-1]
    assert isinstance(failed, Failed)
    assert (failed.code, failed.retryable) == (NodeLostError.code, True)
    assert "SIGKILL" in failed.message
    await watch.until(Loading)
    await watch.until(Ready)
    assert ranks()[0].pid != rank.pid


async def test_an_unwanted_load_is_aborted_and_frees_its_memory(start: Start) -> None:
    watch = await start()
    await watch.want(watch.model())
    await watch.until(Loading)

    await watch.want(epoch=2)
    await watch.until(Unloaded)

    node = await node_where(watch, num_replicas=0)
    assert node.devices[0].free_bytes == node.devices[0].total_bytes
    assert ranks() == []


async def test_a_node_that_stops_finishes_its_answers_and_leaves_nothing(
    start: Start, make_gateway: MakeGateway
) -> None:
    watch = await start()
    await watch.want(watch.model())
    await watch.until(Ready)
    gateway = await make_gateway()
    stream = await gateway.generate(TINY, limits=Limits(max_tokens=200, ignore_eos=True))
    await gateway.deltas_of(stream, until=Accepted)

    await watch.stop()

    assert isinstance((await gateway.deltas_of(stream, until=Finished))[-1], Finished)
    assert await watch.kv.get(subjects.node(NODE)) is None
    assert ranks() == []


async def test_the_pages_for_people_show_what_is_loaded(start: Start) -> None:
    watch = await start(listen=f"127.0.0.1:{free_port()}")
    await watch.want(watch.model())
    await watch.until(Ready)

    async with httpx.AsyncClient(base_url=f"http://{watch.listen}") as client:
        health, discovery, models, nothing = [
            await client.get(path) for path in ("/health", "/discovery", "/models", "/nothing")
        ]

    assert health.json()["status"] == "ok"
    assert health.json()["models"][0]["status"] == "loaded"
    assert health.json()["devices"][0]["memory_free_mib"] > 0
    assert discovery.json()["devices"][0]["kind"] == "cpu"
    assert models.json()[0]["limit"] == {"context": CONTEXT}
    assert models.json()[0]["memory_mib"] > 0
    assert nothing.status_code == 404
    assert nothing.json()["error"]["message"] == "GET /nothing: Not Found"
