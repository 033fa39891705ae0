"""What loading a model takes of memory, seen on a rank's process."""

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from builders.checkpoints import write_gguf, write_llama
from builders.engine import load_options
from cortex_neuron.engine.cluster import Cluster
from cortex_neuron.engine.messages import LoadOptions
from cortex_neuron.model.spec import DTYPE_BYTES, read_spec

LIMIT_S = 60.0
SIZE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 6000,
}
"""A checkpoint of 86 MiB in float32, of which the largest tensor has 12."""
LARGEST_BYTES = SIZE["vocab_size"] * SIZE["hidden_size"] * 4
MARGIN_BYTES = 12 * 2**20
"""What the allocator keeps, and what is read between two returns of a file's pages."""


async def measured(loading: LoadOptions) -> tuple[int, int]:
    """Load, unload; returns the memory of the rank after loading, and its most until then, in bytes."""
    async with asyncio.timeout(LIMIT_S):
        cluster = await Cluster.start(
            loading, on_events=lambda _: None, on_progress=lambda *_: None, timeout_s=LIMIT_S
        )
        (pid,) = cluster.pids
        status = await asyncio.to_thread(Path(f"/proc/{pid}/status").read_text)
        await cluster.close()
    assert not psutil.pid_exists(pid)
    sizes = dict(line.split(":", 1) for line in status.splitlines())
    resident, peak = (int(sizes[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return resident, peak


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("middling"), **SIZE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def empty_bytes(tmp_path_factory: pytest.TempPathFactory) -> int:
    """What a rank takes with next to no model."""
    resident, _ = await measured(load_options(write_llama(tmp_path_factory.mktemp("tiny"))))
    return resident


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", ["safetensors", "gguf"])
async def test_a_load_needs_the_model_and_one_tensor_and_no_more(
    checkpoint: Path, empty_bytes: int, tmp_path: Path, form: str, dtype: str
) -> None:
    path = checkpoint if form == "safetensors" else write_gguf(tmp_path / "m.gguf", checkpoint)
    loading = load_options(path, dtype=dtype)
    weight_bytes = read_spec(path).num_parameters * DTYPE_BYTES[dtype]

    resident, peak = await measured(loading)

    assert peak <= resident + LARGEST_BYTES + 0.05 * weight_bytes + MARGIN_BYTES
    assert 0.9 * weight_bytes <= resident - empty_bytes <= 1.05 * weight_bytes + MARGIN_BYTES
