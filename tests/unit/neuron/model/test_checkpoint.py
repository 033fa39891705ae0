"""Every tensor of a checkpoint has a place, and every place a tensor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from builders.checkpoints import write_gguf, write_llama, write_qwen2
from builders.models import Apart, load_quietly, logits_at_each, random_tokens
from cortex_neuron.model.causal import CausalModel
from cortex_neuron.model.checkpoint import SafetensorsDirectory, fill
from cortex_neuron.model.dense import Layer
from cortex_neuron.model.load import load
from cortex_neuron.model.places import Place, Source
from cortex_neuron.model.shard import Cut, Shard
from cortex_neuron.model.spec import read_spec
from cortex_proto.errors import LoadFailedError


def _rewrite(path: Path, *, without: tuple[str, ...] = (), extra: dict[str, Tensor] | None = None) -> Path:
    file = path / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if name not in without}
    save_file(tensors | (extra or {}), file, {"format": "pt"})
    return path


def test_missing_and_unread_tensors_are_both_named(tmp_path: Path) -> None:
    path = _rewrite(
        write_llama(tmp_path),
        without=("model.norm.weight", "model.layers.1.self_attn.k_proj.weight"),
        extra={"model.layers.0.self_attn.q_norm.weight": torch.ones(16), "vision.weight": torch.ones(3)},
    )

    with pytest.raises(LoadFailedError) as refused:
        load_quietly(path)

    missing, unread = str(refused.value).split("; unread: ")
    assert "model.norm.weight" in missing
    assert "model.layers.1.self_attn.k_proj.weight" in missing
    assert set(unread.split(", ")) == {"model.layers.0.self_attn.q_norm.weight", "vision.weight"}


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    path = _rewrite(write_llama(tmp_path), extra={"model.norm.weight": torch.ones(63)})

    with pytest.raises(LoadFailedError, match=r"model.norm.weight is \[63\], not \[64\]"):
        load_quietly(path)


def test_a_long_list_of_names_is_cut_short(tmp_path: Path) -> None:
    path = _rewrite(write_llama(tmp_path), extra={f"extra.{i}": torch.ones(1) for i in range(20)})

    with pytest.raises(LoadFailedError, match=r"extra\.\d+ and 12 more"):
        load_quietly(path)


def test_what_says_nothing_new_is_passed_over(tmp_path: Path) -> None:
    path = write_llama(tmp_path, tie_word_embeddings=True)
    expected = logits_at_each(load_quietly(path), [1, 2, 3])
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    extra = {"lm_head.weight": torch.zeros(512, 64), buffer: torch.ones(8)}

    model = load_quietly(_rewrite(path, extra=extra))

    assert torch.equal(logits_at_each(model, [1, 2, 3]), expected)


def test_progress_ends_each_stage_at_one(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []

    load(
        write_llama(tmp_path),
        device="cpu",
        dtype=torch.float32,
        on_progress=lambda stage, done: told.append((stage, done)),
    )

    for stage in ("reading weights", "packing weights"):
        of_stage = [done for said, done in told if said == stage]
        assert of_stage == sorted(of_stage)
        assert of_stage[-1] == 1.0


def test_files_may_hold_another_dtype(tmp_path: Path) -> None:
    path = write_llama(tmp_path)
    halves = {name: tensor.bfloat16() for name, tensor in load_file(path / "model.safetensors").items()}
    rounded = {name: tensor.float() for name, tensor in halves.items()}
    tokens = random_tokens(20)

    from_halves = logits_at_each(load_quietly(_rewrite(path, extra=halves)), tokens)
    from_rounded = logits_at_each(load_quietly(_rewrite(path, extra=rounded)), tokens)

    assert torch.equal(from_halves, from_rounded)


def test_a_gguf_file_that_ends_too_soon_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf", write_llama(tmp_path / "hf"))
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(whole.read_bytes()[:-5000])

    with pytest.raises(LoadFailedError, match=r"torn.gguf: cannot read tensor \S+"):
        load_quietly(torn)


def test_a_safetensors_file_that_ends_too_soon_is_refused(tmp_path: Path) -> None:
    path = write_llama(tmp_path)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(LoadFailedError, match=r"model\.safetensors.* ends before the end of model\.\S+"):
        load_quietly(path)


@pytest.mark.parametrize("kept_bytes", [0, 5, 100])
def test_a_safetensors_file_without_a_whole_header_is_refused(tmp_path: Path, kept_bytes: int) -> None:
    path = write_llama(tmp_path)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept_bytes])

    with pytest.raises(LoadFailedError, match=r"model\.safetensors"):
        load_quietly(path)


def test_a_checkpoint_that_does_not_fit_is_refused_before_any_room_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _rewrite(write_llama(tmp_path), without=("model.layers.2.mlp.up_proj.weight",))
    made: list[torch.Size] = []
    empty = torch.empty

    def recorded(*shape: int, **place: Any) -> Tensor:
        tensor = empty(*shape, **place)
        if tensor.device.type != "meta":
            made.append(tensor.shape)
        return tensor

    monkeypatch.setattr(torch, "empty", recorded)

    with pytest.raises(LoadFailedError, match=r"layers\.2\.mlp\.up_proj\.weight"):
        load_quietly(path)

    assert made == []


@dataclass(frozen=True, slots=True)
class Recorded:
    """A tensor that notes the size of each part that is read of it."""

    tensor: Tensor
    reads: list[int]

    def __getitem__(self, part: tuple[slice, ...]) -> Tensor:
        read = self.tensor[part]
        self.reads.append(read.nbytes)
        return read


class Loose:
    """A checkpoint of tensors in memory."""

    def __init__(self, sources: Mapping[str, Recorded]) -> None:
        self.sources = sources
        self.shapes = {name: tuple(source.tensor.shape) for name, source in sources.items()}

    def tensors(self) -> Iterator[tuple[str, Source]]:
        yield from self.sources.items()


@pytest.mark.parametrize("world", [2, 4])
def test_each_rank_reads_its_share_and_no_sharded_tensor_whole(tmp_path: Path, world: int) -> None:
    path = write_qwen2(tmp_path, num_attention_heads=8, num_key_value_heads=4)
    tensors = load_file(path / "model.safetensors")
    whole_bytes = sum(tensor.nbytes for tensor in tensors.values())
    spec = read_spec(path)
    shares = []
    for rank in range(world):
        reads: dict[str, list[int]] = {name: [] for name in tensors}
        sources = {name: Recorded(tensor, reads[name]) for name, tensor in tensors.items()}
        model = CausalModel(spec, Layer, partial(torch.empty, dtype=torch.float32), Apart(Shard(rank, world)))

        num_bytes = fill(model.places(), Loose(sources), lambda *_: None)

        shares.append(num_bytes / whole_bytes)
        assert num_bytes == sum(sum(sizes) for sizes in reads.values())
        for name, sizes in reads.items():
            num_readers = 1 if "norm" in name else world
            assert sum(sizes) == tensors[name].nbytes // num_readers

    assert all(abs(share - 1 / world) < 0.01 for share in shares)


def test_a_slice_of_a_file_is_all_that_is_read_of_it(tmp_path: Path) -> None:
    path = write_llama(tmp_path)
    places = {
        name: Place.of(torch.empty(*_halved(shape, dim)), dim, Shard(1, 2).span(shape[dim]))
        for name, shape in SafetensorsDirectory(path).shapes.items()
        for dim in [len(shape) - 1]
    }

    num_bytes = fill(places, SafetensorsDirectory(path), lambda *_: None)

    for name, tensor in load_file(path / "model.safetensors").items():
        assert torch.equal(places[name].part, tensor.chunk(2, dim=-1)[1])
    assert num_bytes == sum(place.part.nbytes for place in places.values())


def _halved(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return (*shape[:dim], shape[dim] // 2, *shape[dim + 1 :])


def test_a_place_of_several_spans_is_filled_span_by_span() -> None:
    place = Place.of(torch.empty(3, 2), 0, Cut(8, (range(1, 3), range(6, 7))))

    num_bytes = place.fill(torch.arange(16.0).view(8, 2))

    assert place.part.tolist() == [[2.0, 3.0], [4.0, 5.0], [12.0, 13.0]]
    assert (place.shape, num_bytes) == ((8, 2), 24)
