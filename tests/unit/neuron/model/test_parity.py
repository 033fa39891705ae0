"""Tiny random checkpoints of every architecture give the logits that transformers gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.checkpoints import LLAMA3, write_llama, write_qwen2, write_qwen3
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
}


@pytest.mark.parametrize(("write", "overrides"), CASES.values(), ids=CASES.keys())
def test_logits_equal_those_of_transformers(
    tmp_path: Path, write: Callable[..., Path], overrides: dict[str, Any]
) -> None:
    path = write(tmp_path, **overrides)
    model = load_quietly(path)
    tokens = random_tokens(150)
    expected = reference_logits(reference(path), tokens)

    whole = model(Batch.of([(tokens, 0, (4, 5, 6))]), pool(model))
    one_by_one = logits_at_each(model, tokens)

    assert expected.std() > 0.3
    torch.testing.assert_close(one_by_one, expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(whole, expected[-1:], atol=TOLERANCE, rtol=0)


def test_a_sharded_checkpoint_is_read_whole(tmp_path: Path) -> None:
    whole = load_quietly(write_llama(tmp_path / "whole"))
    sharded = load_quietly(write_llama(tmp_path / "sharded", max_shard_size="200KB"))
    batch = Batch.of([(random_tokens(9), 0, (1,))])

    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert torch.equal(sharded(batch, pool(sharded)), whole(batch, pool(whole)))


def test_every_architecture_that_is_read_can_be_built() -> None:
    assert set(LAYERS) == set(SUPPORTED)


def test_bfloat16_errs_no_more_than_transformers_in_bfloat16(tmp_path: Path) -> None:
    path = write_llama(tmp_path)
    tokens = random_tokens(100)
    oracle = reference(path)
    exact = reference_logits(oracle, tokens)
    theirs = reference_logits(oracle.bfloat16(), tokens)

    ours = logits_at_each(load_quietly(path, torch.bfloat16), tokens)

    assert (ours - exact).abs().mean() <= 1.5 * (theirs.float() - exact).abs().mean()
