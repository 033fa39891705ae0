"""Downloads from a hub: what is fetched, what is kept, and how each failure is told."""

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from builders.checkpoints import write_llama
from builders.hub import COMMIT, Hub, serving
from builders.tokenizers import write_tokenizer
from cortex_neuron.files import Repo
from cortex_neuron.hub import download
from cortex_proto.errors import LoadFailedError

LIMIT_S = 60.0
BIG = 400_000
TOKEN = "hf_secret"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


async def get(repo: Repo, told: list[float] | None = None) -> Path:
    async with asyncio.timeout(LIMIT_S):
        return await download(repo, (told if told is not None else []).append)


async def refusal(repo: Repo) -> str:
    with pytest.raises(LoadFailedError) as refused:
        await get(repo)
    assert TOKEN not in str(refused.value)
    return str(refused.value)


def weights(size: int = BIG, seed: int = 0) -> bytes:
    return bytes((seed + at * at) % 251 for at in range(1000)) * (size // 1000)


async def test_what_the_engine_needs_is_fetched_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    source = write_tokenizer(write_llama(tmp_path / "llama", max_shard_size="200KB"), temperature=0.5)
    others = ("README.md", "pytorch_model.bin", "original/config.json", "consolidated.safetensors")
    for name in others:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("not wanted")
    hub.put("org/llama", source)
    told: list[float] = []

    path = await get(Repo("org/llama"), told)

    assert hub.fetched() == {str(it.relative_to(source)) for it in source.rglob("*") if it.is_file()} - {
        *others
    }
    assert {it.name: it.read_bytes() for it in path.iterdir()} == {
        it.name: it.read_bytes() for it in source.iterdir() if it.name in hub.fetched()
    }
    assert told == sorted(told)
    assert told[0] == 0.0
    assert {it.authorization for it in hub.asked if "org/llama" in it.path} == {f"Bearer {TOKEN}"}


async def test_of_many_gguf_files_the_one_for_the_quant_is_fetched(hub: Hub) -> None:
    hub.repos["org/gguf"] = {f"m-{kind}.gguf": weights(seed=n) for n, kind in enumerate(("Q4_K_M", "Q8_0"))}

    path = await get(Repo("org/gguf", quant="q8_0"))

    assert hub.fetched() == {"m-Q8_0.gguf"}
    assert path.name == "m-Q8_0.gguf"
    assert path.read_bytes() == weights(seed=1)


async def test_a_broken_connection_goes_on_where_it_broke(hub: Hub) -> None:
    piece = 10 * 2**20  # what the library writes at a time
    content = weights(25_000_000)
    hub.repos["org/gguf"] = {"m.gguf": content}
    hub.cut_once["m.gguf"] = 2 * piece + 1

    path = await get(Repo("org/gguf"))

    assert [it.range for it in hub.gets("m.gguf")] == [None, f"bytes={2 * piece}-"]
    assert path.read_bytes() == content


def leftovers(cache: Path) -> list[Path]:
    return list(cache.rglob("*.incomplete"))


def write_pieces(folder: Path) -> tuple[Path, Path]:
    """Leave pieces of two downloads, of which one has not been written to for a day."""
    folder.mkdir(parents=True)
    stale, alive = folder / "a.1.incomplete", folder / "b.2.incomplete"
    for piece in (stale, alive):
        piece.touch()
    os.utime(stale, (time.time() - 86_400,) * 2)
    return stale, alive


def sharded() -> dict[str, bytes]:
    shards = {f"model-0000{n}-of-00002.safetensors": weights(seed=n) for n in (1, 2)}
    index = {"weight_map": {f"tensor{n}": name for n, name in enumerate(shards)}}
    return {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode(), **shards}


@contextlib.asynccontextmanager
async def downloading(hub: Hub, repo: Repo, until: str) -> AsyncIterator["asyncio.Task[Path]"]:
    """Begin a download which the hub stops serving in the middle of the file `until`."""
    hub.hold_after[until] = BIG // 2
    task = asyncio.create_task(download(repo, lambda _: None))
    assert await asyncio.to_thread(hub.held.wait, LIMIT_S)
    yield task
    hub.hold_after.clear()


async def test_a_cancelled_download_ends_its_process_and_keeps_finished_files(hub: Hub, cache: Path) -> None:
    hub.repos["org/sharded"] = sharded()
    one, two = sorted(name for name in sharded() if name.endswith(".safetensors"))
    async with downloading(hub, Repo("org/sharded"), until=two) as task:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert not [it for it in psutil.Process().children() if "cortex_neuron.hub_fetch" in it.cmdline()]
    assert leftovers(cache) == []
    path = await get(Repo("org/sharded"))

    assert len(hub.gets(one)) == 1
    assert len(hub.gets(two)) == 2
    assert (path / two).read_bytes() == sharded()[two]


async def test_an_unfinished_download_does_not_serve_offline(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["org/sharded"] = sharded()
    two = max(name for name in sharded() if name.endswith(".safetensors"))
    async with downloading(hub, Repo("org/sharded"), until=two) as task:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    assert "no earlier download of org/sharded is on this node" in await refusal(Repo("org/sharded"))


@pytest.mark.parametrize("how", ["offline", "no route"])
async def test_what_was_downloaded_serves_when_the_hub_cannot_be_reached(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    hub.repos["org/gguf"] = {"m-Q4_0.gguf": weights(), "m-Q8_0.gguf": weights()}
    path = await get(Repo("org/gguf", quant="Q4_0"))
    num_asked = len(hub.asked)
    if how == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")

    assert await get(Repo("org/gguf", quant="Q4_0")) == path
    missing = await refusal(Repo("org/gguf", quant="Q8_0"))

    assert "cannot be reached" in missing
    assert "an earlier download is not enough: no .gguf file in org/gguf has 'Q8_0'" in missing
    assert len(hub.asked) == num_asked


async def test_what_is_there_is_not_fetched_again(hub: Hub) -> None:
    hub.repos["org/gguf"] = {"m.gguf": weights()}
    first = await get(Repo("org/gguf"))
    hub.sizes["m.gguf"] = 1 << 60  # more than any disk has: only what is absent counts

    assert await get(Repo("org/gguf")) == first
    assert await get(Repo("org/gguf", revision=COMMIT)) == first
    assert len(hub.gets("m.gguf")) == 1


async def test_what_a_killed_download_left_is_cleared_away(hub: Hub, cache: Path) -> None:
    hub.repos["org/gguf"] = {"m.gguf": weights()}
    _, alive = write_pieces(cache / "models--org--gguf" / "blobs")

    await get(Repo("org/gguf"))

    assert leftovers(cache) == [alive]


async def test_each_failure_is_told_apart(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    host = hub.url.removeprefix("http://")
    hub.repos = {
        "org/gated": {"m.gguf": weights()},
        "org/gguf": {"m-Q4_0.gguf": weights(), "m-Q8_0.gguf": weights()},
        "org/torch": {"config.json": b"{}", "pytorch_model.bin": weights()},
        "org/torn": {name: content for name, content in sharded().items() if "00002-of" not in name},
    }
    hub.gated.add("org/gated")

    assert await refusal(Repo("org/none")) == (
        f"{host} has no repository org/none, or it is private: then HF_TOKEN must give access to it"
    )
    assert await refusal(Repo("org/gguf", revision="v9")) == f"org/gguf on {host} has no revision 'v9'"
    assert await refusal(Repo("org/gated")) == (
        f"no access to org/gated on {host}: accept its terms there and set HF_TOKEN"
    )
    assert "'Q5' in its name; there are: m-Q4_0.gguf, m-Q8_0.gguf" in await refusal(
        Repo("org/gguf", quant="Q5")
    )
    assert "neither model.safetensors nor model.safetensors.index" in await refusal(Repo("org/torch"))
    assert "lacks what its model.safetensors.index.json names: model-00002" in await refusal(Repo("org/torn"))
    monkeypatch.setenv("HF_ENDPOINT", "http://user:password@127.0.0.1:1")
    unreachable = await refusal(Repo("org/gguf", quant="Q4_0"))
    assert unreachable.startswith("127.0.0.1:1 cannot be reached: ConnectError; and no earlier download")


async def test_a_download_that_the_disk_cannot_hold_is_refused_with_the_numbers(
    hub: Hub, cache: Path
) -> None:
    hub.repos["org/gguf"] = {"m.gguf": weights()}
    hub.sizes["m.gguf"] = 1 << 60

    refused = await refusal(Repo("org/gguf"))

    assert f"org/gguf needs {1 << 40} MiB on the disk of {cache}, " in refused
    free_mib = int(refused.rpartition(", ")[2].partition(" MiB")[0])
    assert abs(free_mib - shutil.disk_usage(cache.parent).free // 2**20) < 1024
    assert hub.fetched() == set()
