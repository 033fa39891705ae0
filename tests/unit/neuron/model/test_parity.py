"""Tiny random checkpoints of every architecture give the logits that transformers gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.checkpoints import (
    LLAMA3,
    as_released,
    write_llama,
    write_qwen2,
    write_qwen3,
    write_qwen3_5,
    write_qwen3_5_moe,
    write_qwen3_5_with_eyes,
    write_qwen3_moe,
    write_qwen3_next,
)
from builders.models import load_quietly, logits_at_each, pool, random_tokens, reference, reference_logits
from cortex_neuron.model.batch import Batch
from cortex_neuron.model.load import LAYERS
from cortex_neuron.model.spec import SUPPORTED

TOLERANCE = 2e-4
CASES = {
    "llama, grouped queries": (write_llama, {}),
    "llama, one kv head": (write_llama, {"num_key_value_heads": 1}),
    "llama, a kv head each": (write_llama, {"num_key_value_heads": 4}),
    "llama, tied": (write_llama, {"tie_word_embeddings": True}),
    "llama, biases": (write_llama, {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": (write_llama, {"head_dim": 32}),
    "llama, llama3 rope": (write_llama, {"rope_parameters": LLAMA3}),
    "llama, linear rope": (
        write_llama,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    ),
    "qwen2": (write_qwen2, {}),
    "qwen3": (write_qwen3, {"tie_word_embeddings": True}),
    "qwen3_moe": (write_qwen3_moe, {}),
    "qwen3_moe, renormalised": (write_qwen3_moe, {"norm_topk_prob": True}),
    "qwen3_moe, some dense layers": (write_qwen3_moe, {"mlp_only_layers": [0], "decoder_sparse_step": 2}),
    "qwen3_5": (write_qwen3_5, {}),
    "qwen3_5, tied": (write_qwen3_5, {"tie_word_embeddings": True}),
    "qwen3_5, as many value heads as key heads": (write_qwen3_5, {"linear_num_value_heads": 2}),
    "qwen3_5, an order of its own": (
        write_qwen3_5,
        {"layer_types": ["full_attention", "linear_attention", "full_attention", "linear_attention"]},
    ),
    "qwen3_5, with eyes": (write_qwen3_5_with_eyes, {}),
    "qwen3_5_moe": (write_qwen3_5_moe, {}),
    "qwen3_next": (write_qwen3_next, {}),
    "qwen3_next, some dense layers": (write_qwen3_next, {"mlp_only_layers": [1]}),
}


@pytest.mark.parametrize(("write", "overrides"), CASES.values(), ids=CASES.keys())
def test_logits_equal_those_of_transformers(
    tmp_path: Path, write: Callable[..., Path], overrides: dict[str, Any]
) -> None:
    path = write(tmp_path, **overrides)
    model = load_quietly(path)
    tokens = random_tokens(150)
    expected = reference_logits(reference(path), tokens)

    whole = model(Batch.of([(tokens, 0, (4, 5, 6))], state_slots=[1]), pool(model))
    one_by_one = logits_at_each(model, tokens)

    assert expected.std() > 0.3
    torch.testing.assert_close(one_by_one, expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(whole, expected[-1:], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("write", [write_qwen3_5_moe, write_qwen3_next], ids=lambda w: w.__name__)
def test_fused_experts_are_read_as_single_ones_and_the_mtp_head_is_left_out(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    single = load_quietly(write(tmp_path / "single"))
    fused = load_quietly(as_released(write(tmp_path / "fused")))
    tokens = random_tokens(20)

    assert fused.spec == single.spec
    assert torch.equal(logits_at_each(fused, tokens), logits_at_each(single, tokens))


def test_a_sharded_checkpoint_is_read_whole(tmp_path: Path) -> None:
    whole = load_quietly(write_llama(tmp_path / "whole"))
    sharded = load_quietly(write_llama(tmp_path / "sharded", max_shard_size="200KB"))
    batch = Batch.of([(random_tokens(9), 0, (1,))])

    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert torch.equal(sharded(batch, pool(sharded)), whole(batch, pool(whole)))


def test_every_architecture_that_is_read_can_be_built() -> None:
    assert set(LAYERS) == set(SUPPORTED)


@pytest.mark.parametrize("write", [write_llama, write_qwen3_5], ids=lambda w: w.__name__)
def test_bfloat16_errs_no_more_than_transformers_in_bfloat16(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    path = write(tmp_path)
    tokens = random_tokens(100)
    oracle = reference(path)
    exact = reference_logits(oracle, tokens)
    theirs = reference_logits(oracle.bfloat16(), tokens)

    ours = logits_at_each(load_quietly(path, torch.bfloat16), tokens)

    assert (ours - exact).abs().mean() <= 1.5 * (theirs.float() - exact).abs().mean()


def test_what_is_small_and_decides_much_stays_in_float32(tmp_path: Path) -> None:
    path = write_qwen3_next(tmp_path)
    exact = dict(load_quietly(path).named_parameters())

    rounded = load_quietly(path, torch.bfloat16)

    kept = {name for name, weight in rounded.named_parameters() if weight.dtype == torch.float32}
    assert kept == {
        name for name in exact if name.endswith(("A_log_N", "dt_bias_N", "linear_attn.norm.weight"))
    }
    assert all(torch.equal(rounded.get_parameter(name), exact[name]) for name in kept)
    routers = [linear for linear in rounded.linears() if "gate" in linear.outputs]
    assert {router.form.packed.dtype for router in routers} == {torch.float32}  # type: ignore[attr-defined]
