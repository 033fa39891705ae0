"""Every tensor of a checkpoint has a place, and every place a tensor."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from builders.checkpoints import write_gguf, write_llama
from builders.models import load_quietly, logits_at_each, random_tokens
from cortex_neuron.model.load import load
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

    with pytest.raises(LoadFailedError, match=r"model\.safetensors"):
        load_quietly(path)
