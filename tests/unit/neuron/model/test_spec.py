"""What is known of a model before it is loaded, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter

from builders.checkpoints import (
    write_gguf,
    write_llama,
    write_qwen2,
    write_qwen3,
    write_qwen3_5,
    write_qwen3_5_moe,
    write_qwen3_5_with_eyes,
    write_qwen3_moe,
    write_qwen3_next,
)
from builders.models import Apart, load_quietly, smollm2
from cortex_neuron.model.causal import CausalModel
from cortex_neuron.model.config import DeltaSpec, ExpertsSpec
from cortex_neuron.model.dense import Layer
from cortex_neuron.model.kv import KvPool
from cortex_neuron.model.rope import Rope
from cortex_neuron.model.shard import Shard
from cortex_neuron.model.spec import Step, footprint, kv_page_bytes, read_spec, state_slot_bytes
from cortex_proto.errors import LoadFailedError


def _edit(path: Path, **changes: Any) -> Path:
    """Change keys of the config of the checkpoint at `path`; None removes one."""
    file = path / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return path


def test_the_spec_of_a_directory(tmp_path: Path) -> None:
    spec = read_spec(write_llama(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 5000.0}))

    assert (spec.architecture, spec.num_layers, spec.dim, spec.intermediate_dim) == ("llama", 3, 64, 128)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (4, 2, 16)
    assert (spec.vocab_size, spec.context, spec.tied) == (512, 1024, False)
    assert spec.rope == Rope(5000.0)


def test_the_spec_of_a_hybrid(tmp_path: Path) -> None:
    spec = read_spec(write_qwen3_5(tmp_path))

    linear = "linear_attention"
    assert (spec.architecture, spec.centered_norms, spec.rotary_dim) == ("qwen3_5", True, 8)
    assert spec.layer_types == (linear, linear, linear, "full_attention")
    assert (spec.num_attention_layers, spec.num_delta_layers) == (1, 3)
    assert spec.delta == DeltaSpec(num_k_heads=2, num_v_heads=4, k_dim=16, v_dim=24, num_taps=4)
    assert not spec.experts.layers


def test_a_text_model_inside_one_that_sees_has_the_spec_of_itself(tmp_path: Path) -> None:
    alone = read_spec(write_qwen3_5(tmp_path / "alone"))

    inside = read_spec(write_qwen3_5_with_eyes(tmp_path / "inside"))

    assert inside == alone


def test_what_a_config_leaves_out_is_as_its_architecture_has_it(tmp_path: Path) -> None:
    written = read_spec(write_qwen3_next(tmp_path))

    silent = dict.fromkeys(("layer_types", "norm_topk_prob", "mlp_only_layers", "decoder_sparse_step"))
    old_rope = {"rope_parameters": None, "rope_theta": 10_000.0}
    assert read_spec(_edit(tmp_path, **silent, **old_rope)) == written


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, ExpertsSpec(frozenset({0, 1, 2}), 8, 3, 48, 0, renormalises=False)),
        ({"mlp_only_layers": [1]}, ExpertsSpec(frozenset({0, 2}), 8, 3, 48, 0, renormalises=False)),
        ({"decoder_sparse_step": 2}, ExpertsSpec(frozenset({1}), 8, 3, 48, 0, renormalises=False)),
        ({"norm_topk_prob": True}, ExpertsSpec(frozenset({0, 1, 2}), 8, 3, 48, 0, renormalises=True)),
    ],
    ids=str,
)
def test_the_layers_with_experts(tmp_path: Path, overrides: dict[str, Any], expected: ExpertsSpec) -> None:
    assert read_spec(write_qwen3_moe(tmp_path, **overrides)).experts == expected


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"attn_output_gate": False}, "attention without an output gate is not supported"),
        ({"linear_num_key_heads": 3}, "4 linear value heads cannot share 3 key heads"),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers, there are 4"),
        ({"layer_types": ["mamba"] * 4}, "Invalid enum value 'mamba'"),
        ({"num_experts_per_tok": 9}, "no more chosen experts than there are"),
        ({"num_experts": None}, "num_experts and moe_intermediate_size are needed"),
    ],
    ids=str,
)
def test_a_hybrid_that_cannot_run_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], because: str
) -> None:
    path = _edit(write_qwen3_5_moe(tmp_path), **changes)

    with pytest.raises(LoadFailedError, match=because):
        read_spec(path)


def test_a_wrapped_model_of_another_kind_is_not_taken_for_what_it_wraps(tmp_path: Path) -> None:
    path = _edit(write_llama(tmp_path), model_type="llava", text_config={"model_type": "llama"})

    with pytest.raises(LoadFailedError, match="model_type 'llava' is not supported"):
        read_spec(path)


def test_the_spec_of_a_gguf_file() -> None:
    spec = read_spec(smollm2())

    assert (spec.architecture, spec.num_layers, spec.dim, spec.intermediate_dim) == ("llama", 30, 576, 1536)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (9, 3, 64)
    assert (spec.vocab_size, spec.context, spec.tied) == (49152, 8192, True)
    assert spec.rope == Rope(100_000.0)
    assert spec.rms_norm_eps == pytest.approx(1e-5)
    assert spec.eos_ids == (2,)
    assert spec.num_parameters == 134_515_008


def test_a_directory_and_its_gguf_file_have_the_same_spec(tmp_path: Path) -> None:
    directory = write_llama(tmp_path / "hf", attention_bias=True)
    _edit(directory, eos_token_id=[2, 7])

    (directory / "generation_config.json").unlink()
    from_gguf = read_spec(write_gguf(tmp_path / "m.gguf", directory))

    from_directory = read_spec(directory)
    assert from_gguf.rms_norm_eps == pytest.approx(from_directory.rms_norm_eps)
    same = ("num_layers", "head_dim", "qkv_bias", "rope", "tied", "num_parameters", "context", "eos_ids")
    for name in same:
        assert getattr(from_gguf, name) == getattr(from_directory, name), name


def test_the_old_spelling_of_rope_is_understood(tmp_path: Path) -> None:
    scaling = {"type": "linear", "factor": 2}
    path = _edit(write_llama(tmp_path), rope_parameters=None, rope_theta=500_000, rope_scaling=scaling)

    assert read_spec(path).rope == Rope(500_000.0, (2.0,) * 8)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [(None, (2,)), ({"eos_token_id": 5}, (5,)), ({"eos_token_id": [5, 9]}, (5, 9)), ({"top_k": 1}, (2,))],
    ids=str,
)
def test_the_generation_config_says_first_what_ends_an_answer(
    tmp_path: Path, generation: dict[str, Any] | None, expected: tuple[int, ...]
) -> None:
    path = write_llama(tmp_path)
    file = path / "generation_config.json"
    file.unlink(missing_ok=True)
    if generation is not None:
        file.write_text(json.dumps(generation))

    assert read_spec(path).eos_ids == expected


def test_a_head_that_is_absent_is_the_embedding(tmp_path: Path) -> None:
    path = _edit(write_llama(tmp_path, tie_word_embeddings=True), tie_word_embeddings=False)

    assert read_spec(path).tied


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported; supported: llama, qwen2, qwen3"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported: silu"),
        ({"quantization_config": {"bits": 4}}, "quantised safetensors are not supported"),
        ({"use_sliding_window": True}, "sliding-window attention is not supported"),
        (
            {"rope_parameters": {"rope_type": "yarn"}},
            "'yarn' is not supported; supported: default, linear, llama3",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotates 0.5 of each head"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3 kv heads"),
        ({"hidden_size": None}, "missing required field `hidden_size`"),
        ({"num_hidden_layers": "three"}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
    ],
    ids=str,
)
def test_what_cannot_run_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], because: str) -> None:
    path = _edit(write_llama(tmp_path), **changes)

    with pytest.raises(LoadFailedError, match=because) as refused:
        read_spec(path)

    assert str(path) in str(refused.value)


def test_a_model_of_another_kind_is_refused_before_its_weights_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')

    with pytest.raises(LoadFailedError, match="'mamba' is not supported"):
        read_spec(tmp_path)


@pytest.mark.parametrize(("architecture", "experts"), [("mamba", 0), ("llama", 8)])
def test_a_gguf_file_of_another_kind_is_refused(tmp_path: Path, architecture: str, experts: int) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", architecture)
    writer.add_head_count([4, 0])
    writer.add_expert_count(experts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    with pytest.raises(
        LoadFailedError, match=f"'{architecture}.*' is not supported; supported: llama, qwen2"
    ):
        read_spec(tmp_path / "m.gguf")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "model")
    (path / "model.safetensors").unlink()

    with pytest.raises(LoadFailedError, match=r"neither a model directory nor a \.gguf file"):
        read_spec(tmp_path / "nowhere")
    with pytest.raises(LoadFailedError, match=r"has neither model\.safetensors nor"):
        read_spec(path)
    with pytest.raises(LoadFailedError, match=r"cannot read .*config\.json"):
        read_spec(tmp_path)


@pytest.mark.parametrize("kept_bytes", [0, 3, 30, 500])
def test_a_torn_gguf_header_is_refused(tmp_path: Path, kept_bytes: int) -> None:
    whole = write_gguf(tmp_path / "m.gguf", write_llama(tmp_path / "hf"))
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(whole.read_bytes()[:kept_bytes])

    with pytest.raises(LoadFailedError, match=r"cannot read .*torn\.gguf as GGUF"):
        read_spec(torn)


def test_reading_a_spec_does_not_import_torch() -> None:
    program = "import sys, cortex_neuron.model.spec; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("write", "overrides"),
    [
        (write_llama, {}),
        (write_llama, {"tie_word_embeddings": True}),
        (write_qwen3_5, {"tie_word_embeddings": True}),
        (write_qwen3_5_with_eyes, {}),
        (write_qwen3_next, {}),
    ],
)
def test_the_footprint_covers_the_weights_that_are_held(
    tmp_path: Path, dtype: str, write: Callable[..., Path], overrides: dict[str, Any]
) -> None:
    path = write(tmp_path, **overrides)
    spec = read_spec(path)
    model = load_quietly(path, getattr(torch, dtype))

    booked = footprint(spec, dtype)

    packed = sum(linear.form.packed.nbytes for linear in model.linears())  # type: ignore[attr-defined]
    assert booked.weight_bytes == packed + sum(p.nbytes for p in model.parameters())
    parts = (booked.weight_bytes, booked.state_bytes, booked.workspace_bytes, booked.process_bytes)
    assert booked.total_bytes == sum(parts)


def test_a_gpu_holds_a_tied_table_once_and_no_process() -> None:
    spec = read_spec(smollm2())

    on_gpu = footprint(spec, "bfloat16", device="cuda")

    assert on_gpu.weight_bytes == 2 * 134_515_008
    assert on_gpu.process_bytes == 0


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize(
    ("write", "overrides"),
    [
        (write_llama, {"attention_bias": True, "mlp_bias": True, "vocab_size": 513}),
        (write_qwen2, {"tie_word_embeddings": True}),
        (write_qwen3, {}),
    ],
)
def test_the_footprint_is_what_the_leader_of_several_ranks_holds(
    tmp_path: Path, write: Callable[..., Path], overrides: dict[str, Any], world: int
) -> None:
    spec = read_spec(write(tmp_path, **overrides))
    empty = partial(torch.empty, device="meta", dtype=torch.bfloat16)
    model = CausalModel(spec, Layer, empty, Apart(Shard(0, world)))

    booked = footprint(spec, "bfloat16", device="cuda", world=world)

    assert booked.weight_bytes == 2 * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("world", "share"), [(1, 1), (2, 2), (4, 2)])
def test_a_page_takes_a_share_of_each_rank_or_a_head_at_least(tmp_path: Path, world: int, share: int) -> None:
    spec = read_spec(write_llama(tmp_path))

    kv = KvPool(spec, Shard(world - 1, world), num_pages=3, dtype=torch.float32)

    assert kv_page_bytes(spec, "float32", world) == kv_page_bytes(spec, "float32") // share
    assert 3 * kv_page_bytes(spec, "float32", world) == kv.k.nbytes + kv.v.nbytes


def test_a_bigger_step_needs_more_workspace() -> None:
    spec = read_spec(smollm2())

    small, big = (
        footprint(spec, "float32", Step(max_batch=num, prefill_tokens=64)).workspace_bytes for num in (1, 32)
    )

    assert big - small >= 31 * spec.vocab_size * 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("write", [write_qwen3, write_qwen3_5], ids=lambda w: w.__name__)
def test_a_page_and_a_slot_are_as_big_as_is_said(
    tmp_path: Path, dtype: str, write: Callable[..., Path]
) -> None:
    spec = read_spec(write(tmp_path))

    kv = KvPool(spec, num_pages=5, num_slots=3, dtype=getattr(torch, dtype))

    assert 5 * kv_page_bytes(spec, dtype) == kv.k.nbytes + kv.v.nbytes
    assert 3 * state_slot_bytes(spec, dtype) == kv.states.s.nbytes + kv.states.tails.nbytes


def test_a_load_books_a_slot_for_each_row_one_more_and_the_snapshots(tmp_path: Path) -> None:
    spec = read_spec(write_qwen3_5(tmp_path))

    booked = footprint(spec, "float32", step=Step(max_batch=4))

    assert booked.state_bytes == (4 + 1 + 2) * state_slot_bytes(spec, "float32")
