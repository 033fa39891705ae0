"""The real model: SmolLM2-135M-Instruct out of its GGUF file, beside transformers.

About 20 s in all, of which 12 go into transformers' reading of the file.
"""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from builders.models import load_quietly, pool, reference_logits, smollm2
from cortex_neuron.model.batch import Batch
from cortex_neuron.model.causal import CausalModel

# The chat template's rendering of "Tell me about the sea.", with the system prompt.
PROMPT = [
    *(1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712),
    *(8182, 2, 198, 1, 4093, 198, 31530, 549, 563, 260, 3426, 30, 2, 198, 1, 520, 9531, 198),
]
NUM_TOKENS = 32
PAGES = (3, 1)


@pytest.fixture(scope="module")
def oracle() -> Any:
    """What transformers makes of the file; its own way in, from_pretrained, would need accelerate too."""
    read_gguf: Any = load_gguf_checkpoint
    model: Any = LlamaForCausalLM(LlamaConfig(**read_gguf(smollm2())["config"]))
    read = read_gguf(smollm2(), return_tensors=True, model_to_load=model)
    result = model.load_state_dict(read["tensors"], strict=False)
    assert result.missing_keys == ["lm_head.weight"]
    return model.eval()


@pytest.fixture(scope="module")
def model() -> CausalModel:
    return load_quietly(smollm2())


def _greedy(model: CausalModel, prompt: list[int]) -> list[int]:
    kv = pool(model)
    tokens = list(prompt)
    while len(tokens) < len(prompt) + NUM_TOKENS:
        past = len(tokens) - 1 if len(tokens) > len(prompt) else 0
        tokens.append(int(model(Batch.of([(tokens[past:], past, PAGES)]), kv).argmax()))
    return tokens[len(prompt) :]


def test_logits_equal_those_of_transformers(oracle: Any, model: CausalModel) -> None:
    expected = reference_logits(oracle, PROMPT)
    kv = pool(model)

    logits = torch.cat([model(Batch.of([([t], past, PAGES)]), kv) for past, t in enumerate(PROMPT)])

    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)


def test_greedy_tokens_equal_those_of_transformers(oracle: Any, model: CausalModel) -> None:
    prompt = torch.tensor([PROMPT])
    answer = oracle.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NUM_TOKENS
    )

    assert _greedy(model, PROMPT) == answer[0, len(PROMPT) :].tolist()


def test_bfloat16_chooses_what_float32_chooses(model: CausalModel) -> None:
    exact = model(Batch.of([(PROMPT, 0, PAGES)]), pool(model))
    half = load_quietly(smollm2(), torch.bfloat16)

    rounded = half(Batch.of([(PROMPT, 0, PAGES)]), pool(half))

    assert rounded.argmax() == exact.argmax()
    assert (rounded - exact).abs().mean() < 0.05 * exact.std()
