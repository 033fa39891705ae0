"""Models shared by several ranks over gloo say what they say on one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from builders.checkpoints import (
    write_gguf,
    write_llama,
    write_qwen2,
    write_qwen3,
    write_qwen3_5_with_eyes,
    write_qwen3_next,
)
from builders.models import load_quietly, logits_at_each
from builders.ranks import TOKENS, logits_of

TOLERANCE = 5e-5
HEADS: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 2}
"""Two key/value heads: at world 4 each is on two ranks."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A model of every kind; vocabularies of 513 and 514 cannot be shared evenly."""
    path = tmp_path_factory.mktemp("models")
    return [
        write_llama(path / "biased", **HEADS, attention_bias=True, mlp_bias=True),
        write_llama(path / "tied", **HEADS, tie_word_embeddings=True, vocab_size=514),
        write_llama(path / "uneven", **HEADS, vocab_size=513),
        write_qwen2(path / "qwen2", **HEADS),
        write_qwen3(path / "qwen3", num_key_value_heads=4),
        write_gguf(path / "m.gguf", write_llama(path / "hf")),
        write_qwen3_5_with_eyes(path / "qwen3_5"),
        write_qwen3_next(path / "qwen3_next"),
    ]


@pytest.mark.parametrize("world", [2, 4])
async def test_logits_and_greedy_tokens_are_those_of_one_rank(
    models: list[Path], tmp_path: Path, world: int
) -> None:
    expected = [logits_at_each(load_quietly(path), TOKENS) for path in models]

    shared = await logits_of(world, models, tmp_path)

    for path, ours, theirs in zip(models, shared, expected, strict=True):
        assert theirs.std() > 0.3, path
        assert (ours - theirs).abs().max() <= TOLERANCE, path
        assert torch.equal(ours.argmax(-1), theirs.argmax(-1)), path
