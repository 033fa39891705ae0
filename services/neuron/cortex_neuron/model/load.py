"""From a path to a model that is ready to run."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from cortex_neuron.model import dense, moe, qwen35
from cortex_neuron.model.causal import CausalModel, MakeLayer
from cortex_neuron.model.checkpoint import Checkpoint, OnProgress, SafetensorsDirectory, check, fill
from cortex_neuron.model.gguf import GgufFile
from cortex_neuron.model.group import SOLO, Group
from cortex_neuron.model.matmul import can_pack
from cortex_neuron.model.relaid import Relaid
from cortex_neuron.model.spec import check_world, read_spec

LAYERS: Mapping[str, MakeLayer] = {
    "llama": dense.Layer,
    "qwen2": dense.Layer,
    "qwen3": dense.Layer,
    "qwen3_moe": moe.layer,
    "qwen3_next": qwen35.layer,
    "qwen3_5": qwen35.layer,
    "qwen3_5_moe": qwen35.layer,
}
"""The layer of each architecture that `spec` can read."""


def load(
    path: Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    on_progress: OnProgress,
    group: Group = SOLO,
) -> CausalModel:
    """Build the model at `path`, a Hugging Face directory or a .gguf file, and read its weights.

    Of several ranks each builds and reads its own part; a GGUF file is still dequantised whole,
    one tensor at a time.

    Raises:
        LoadFailedError: as `read_spec`, `check_world` and `check`, before any memory is taken.
    """
    device = torch.device(device)
    spec = read_spec(path)
    check_world(spec, group.shard.world)
    checkpoint = Relaid(_open(path), spec)

    def build(at: torch.device) -> CausalModel:
        empty = partial(torch.empty, dtype=dtype, device=at)
        return CausalModel(spec, LAYERS[spec.architecture], empty, group)

    check(build(torch.device("meta")).places(), checkpoint)
    model = build(device)
    fill(model.places(), checkpoint, on_progress)
    if can_pack(dtype, device):
        _pack(model, on_progress)
    return model.eval()


def _open(path: Path) -> Checkpoint:
    return SafetensorsDirectory(path) if path.is_dir() else GgufFile(path)


def _pack(model: CausalModel, on_progress: OnProgress) -> None:
    linears = model.linears()
    for done, linear in enumerate(linears, start=1):
        linear.pack()
        on_progress("packing weights", done / len(linears))
