"""GGUF files give the logits that transformers gives with the weights they were made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.checkpoints import LLAMA3, write_gguf, write_llama, write_qwen2, write_qwen3, write_rounded
from builders.models import load_quietly, logits_at_each, random_tokens, reference, reference_logits
from builders.tokenizers import byte_tokenizer, write_tokenizer
from cortex_neuron.model.spec import read_spec
from cortex_neuron.text import tokenizer
from cortex_neuron.text.conversion import tokenizer_dir
from cortex_proto.generation import Chat, ChatTurn

TOLERANCE = 2e-4
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64}
"""K-quants come in blocks of 256."""
KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16", "F32")
Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("write", "overrides"),
    [
        (write_llama, {}),
        (write_llama, {"attention_bias": True}),
        (write_llama, {"rope_parameters": LLAMA3}),
        (write_llama, {"tie_word_embeddings": True}),
        (write_qwen2, {}),
        (write_qwen2, {"tie_word_embeddings": True}),
        (write_qwen3, {}),
        (write_qwen3, {"head_dim": 16}),
    ],
    ids=str,
)
def test_a_file_equals_the_directory_it_was_made_of(
    tmp_path: Path, write: Write, overrides: dict[str, Any]
) -> None:
    directory = write(tmp_path / "hf", **overrides)
    divisors = read_spec(directory).rope.divisors
    model = load_quietly(write_gguf(tmp_path / "m.gguf", directory, rope_factors=divisors))
    tokens = random_tokens(100)

    logits = logits_at_each(model, tokens)

    expected = reference_logits(reference(directory), tokens)
    assert expected.std() > 0.3
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_quantisation_computes_with_what_it_stands_for(tmp_path: Path, kind: str) -> None:
    _assert_parity(tmp_path, write_llama, kind)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("write", [write_qwen2, write_qwen3])
def test_qwen_files_are_quantised_alike(tmp_path: Path, write: Write, kind: str) -> None:
    _assert_parity(tmp_path, write, kind)


def _assert_parity(folder: Path, write: Write, kind: str) -> None:
    directory = write(folder / "hf", **WIDE, initializer_range=0.04)
    rounded = reference(write_rounded(folder / "rounded", directory, kind))
    tokens = random_tokens(20)

    model = load_quietly(write_gguf(folder / "m.gguf", directory, quantisation=kind))

    expected = reference_logits(rounded, tokens)
    assert expected.std() > 0.3
    torch.testing.assert_close(logits_at_each(model, tokens), expected, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_1"])
def test_quantisations_stay_near_the_original(tmp_path: Path, kind: str) -> None:
    # Rows of 64 numbers are two blocks of 32, which all of these use or do not need.
    directory = write_llama(tmp_path / "hf")
    tokens = random_tokens(40)
    exact = logits_at_each(load_quietly(directory), tokens)

    rounded = load_quietly(write_gguf(tmp_path / "m.gguf", directory, quantisation=kind))

    error = (logits_at_each(rounded, tokens) - exact).abs().mean() / exact.std()
    assert 0 < error < {"F16": 0.001, "BF16": 0.01, "Q8_0": 0.02, "Q5_1": 0.15}[kind]


@pytest.mark.parametrize("write", [write_qwen2, write_qwen3])
async def test_the_tokenizer_of_a_qwen_file_is_read_from_it(tmp_path: Path, write: Write) -> None:
    ours = byte_tokenizer()
    size = {"vocab_size": ours.get_vocab_size()}
    file = write_gguf(tmp_path / "m.gguf", write_tokenizer(write(tmp_path / "hf", **size)))

    codec = tokenizer.load(await tokenizer_dir(file, tmp_path / "cache"), file)

    rendered = codec.encode(Chat((ChatTurn("user", "the cat sat on the log"),)))
    assert codec.template is not None
    text = "<|im_start|>user\nthe cat sat on the log<|im_end|>\n<|im_start|>assistant\n"
    assert rendered == ours.encode(text).ids
    assert ours.decode(codec.tokenizer.encode("na\u00efve \u2603").ids) == "na\u00efve \u2603"
