"""A model that the hub has: the neuron says how far its download is, and stops it when nobody wants it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from builders.hub import Hub, serving
from builders.neuron import WITHIN_S, MakeGateway, Start, Watch
from cortex_proto.fleet import Loading, LoadRefused, Ready, Unloaded
from cortex_proto.generation import Finished, Limits
from cortex_proto.ids import ModelId


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "*")
    with serving(Hub()) as hub:
        hub.put("org/tiny", checkpoint)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


async def until_downloading(watch: Watch, name: str) -> None:
    while True:
        state = (await watch.until(Loading, name)).state
        assert isinstance(state, Loading)
        if state.stage == "downloading":
            return


async def test_a_model_of_the_hub_is_downloaded_and_serves(
    start: Start, make_gateway: MakeGateway, hub: Hub
) -> None:
    watch = await start()
    watch.path = Path("hf:org/tiny")

    await watch.want(watch.model())
    await until_downloading(watch, "tiny")
    await watch.until(Ready)

    gateway = await make_gateway()
    stream = await gateway.generate(ModelId("tiny"), limits=Limits(max_tokens=3))
    assert isinstance((await gateway.deltas_of(stream, until=Finished))[-1], Finished)


async def test_a_download_that_nobody_wants_is_stopped_and_holds_up_no_other(
    start: Start, hub: Hub, checkpoint: Path
) -> None:
    hub.hold_after["model.safetensors"] = 100_000
    watch = await start()
    watch.path = Path("hf:org/tiny")
    slow = watch.model("slow")
    watch.path = checkpoint
    local = watch.model("local")

    await watch.want(slow, local)
    await watch.until(Ready, "local")
    async with asyncio.timeout(WITHIN_S):
        await asyncio.to_thread(hub.held.wait, WITHIN_S)
    await watch.want(local, epoch=2)
    await watch.until(Unloaded, "slow")

    assert not [it for it in psutil.Process().children() if "cortex_neuron.hub_fetch" in it.cmdline()]


async def test_a_model_that_the_hub_does_not_have_is_refused(start: Start, hub: Hub) -> None:
    watch = await start()
    watch.path = Path("hf:org/none")

    await watch.want(watch.model("none"))
    refused = (await watch.until(LoadRefused, "none")).state

    assert isinstance(refused, LoadRefused)
    assert "has no repository org/none" in refused.because
