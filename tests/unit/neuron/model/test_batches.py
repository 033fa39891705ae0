"""What a row's logits do not depend on: how it is cut, its company, and where its pages are."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from builders.checkpoints import write_llama, write_qwen3_5, write_qwen3_moe
from builders.models import load_quietly, logits_at_each, pool, random_tokens
from cortex_neuron.model.batch import PAGE, Batch, Row
from cortex_neuron.model.causal import CausalModel
from cortex_neuron.model.kv import KvPool
from cortex_neuron.model.load import LAYERS
from cortex_neuron.model.spec import read_spec

LENGTH = 200
TOKENS = random_tokens(LENGTH)
assert_near = partial(torch.testing.assert_close, atol=2e-5, rtol=0)


@pytest.fixture(
    scope="module", params=[write_llama, write_qwen3_moe, write_qwen3_5], ids=lambda w: w.__name__
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    return load_quietly(request.param(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def whole(model: CausalModel) -> Tensor:
    """The logits after all TOKENS, computed in one step."""
    logits: Tensor = model(Batch.of([(TOKENS, 0, (1, 2, 3, 4))], state_slots=[3]), pool(model))
    return logits


def _chunked(model: CausalModel, cuts: list[int], pages: tuple[int, ...]) -> Iterator[Tensor]:
    kv = pool(model)
    for start, stop in zip([0, *cuts], [*cuts, LENGTH], strict=True):
        yield model(Batch.of([(TOKENS[start:stop], start, pages)], state_slots=[1]), kv)


@pytest.mark.parametrize("cuts", [[64], [63], [65, 66], [1], [199], [50, 64, 128, 130]], ids=str)
@pytest.mark.parametrize("pages", [(1, 2, 3, 4), (9, 3, 4, 7), (4, 3, 2, 1)], ids=str)
def test_chunks_on_any_pages_equal_the_whole_prompt(
    model: CausalModel, whole: Tensor, cuts: list[int], pages: tuple[int, ...]
) -> None:
    *_, last = _chunked(model, cuts, pages)

    assert_near(last, whole)


def test_pages_held_for_later_change_nothing(model: CausalModel, whole: Tensor) -> None:
    logits = model(Batch.of([(TOKENS, 0, (1, 2, 3, 4, 20, 7))], state_slots=[2]), pool(model))

    assert_near(logits, whole)


def test_rows_of_a_mixed_batch_equal_each_row_alone(model: CausalModel) -> None:
    a, b, c = random_tokens(70, seed=1), random_tokens(90, seed=2), random_tokens(30, seed=3)
    kv = pool(model)
    model(Batch.of([(a[:69], 0, (8, 5)), (b[:40], 0, (2,))], state_slots=[5, 2]), kv)

    # One row decodes, one goes on with its prompt, one begins, one begins and has a single token.
    rows = [(a[69:], 69, (8, 5)), (b[40:], 40, (2, 3)), (c, 0, (6,)), (c[:1], 0, (7,))]
    mixed = model(Batch.of(rows, state_slots=[5, 2, 1, 4]), kv)

    alone = torch.cat([logits_at_each(model, tokens)[-1:] for tokens in (a, b, c, c[:1])])
    assert_near(mixed, alone)


def test_decoding_rows_together_equals_each_row_alone(model: CausalModel) -> None:
    prompts = [random_tokens(num, seed=num) for num in (1, 63, 64, 65, 128)]
    pages = [(1,), (2,), (4, 9), (5, 6), (12, 10, 11)]
    kv = pool(model)
    slots = [3, 1, 2, 6, 5]
    model(Batch.of([(p, 0, at) for p, at in zip(prompts, pages, strict=True)], state_slots=slots), kv)

    rows = [([7], len(p), at) for p, at in zip(prompts, pages, strict=True)]
    together = model(Batch.of(rows, state_slots=slots), kv)

    alone = torch.cat([logits_at_each(model, [*p, 7])[-1:] for p in prompts])
    assert_near(together, alone)


def test_a_batch_knows_where_each_token_goes() -> None:
    batch = Batch.of([([10, 11, 12], PAGE - 2, (3, 8, 5)), ([13], 0, (4,))], state_slots=[0, 6])

    assert batch.tokens_T.tolist() == [10, 11, 12, 13]
    assert batch.positions_T.tolist() == [PAGE - 2, PAGE - 1, PAGE, 0]
    assert batch.slots_T.tolist() == [4 * PAGE - 2, 4 * PAGE - 1, 8 * PAGE, 4 * PAGE]
    assert batch.ends_R.tolist() == [2, 3]
    assert batch.rows == (Row(0, 3, PAGE - 2, (3, 8)), Row(3, 4, 0, (4,), slot=6))
    assert [row.length for row in batch.rows] == [PAGE + 1, 1]


@pytest.mark.parametrize("num_prompt", [1, 63, 64, 65, 130])
def test_greedy_tokens_do_not_depend_on_how_the_prompt_is_computed(
    model: CausalModel, num_prompt: int
) -> None:
    prompt = random_tokens(num_prompt, seed=5)

    assert _greedy(model, [prompt]) == _greedy(model, [[token] for token in prompt])


def _greedy(model: CausalModel, parts: list[list[int]], num_tokens: int = 8) -> list[int]:
    """Compute a prompt part by part, then say what follows, token by token."""
    kv = pool(model)
    said: list[int] = []
    past = 0
    parts = list(parts)
    while len(said) < num_tokens:
        tokens = parts.pop(0) if parts else [said[-1]]
        logits = model(Batch.of([(tokens, past, (1, 2, 3))], state_slots=[1]), kv)
        past += len(tokens)
        if not parts:
            said.append(int(logits.argmax()))
    return said


def test_states_are_copied_and_cleared(model: CausalModel) -> None:
    kv = pool(model)
    model(Batch.of([(TOKENS[:70], 0, (1, 2))], state_slots=[1]), kv)
    kv.states.copy(1, 2)
    model(Batch.of([([7], 70, (1, 2))], state_slots=[1]), kv)
    kv.states.zero(1)

    of_copy = model(Batch.of([([7], 70, (1, 2))], state_slots=[2]), kv)
    anew = model(Batch.of([([7], 0, (3,))], state_slots=[1]), kv)

    assert_near(of_copy, logits_at_each(model, [*TOKENS[:70], 7])[-1:])
    assert_near(anew, logits_at_each(model, [7]))


@pytest.mark.parametrize("write", [write_llama, write_qwen3_5], ids=lambda w: w.__name__)
def test_nothing_of_the_plain_path_is_tied_to_the_cpu(tmp_path: Path, write: Callable[..., Path]) -> None:
    # The device "meta" computes shapes alone, and refuses to meet tensors of another device.
    spec = read_spec(write(tmp_path))
    model = CausalModel(
        spec, LAYERS[spec.architecture], partial(torch.empty, dtype=torch.bfloat16, device="meta")
    )
    kv = KvPool(spec, num_pages=9, num_slots=4, dtype=torch.bfloat16, device="meta")
    batch = Batch.of([([1], 70, (5, 3)), ([1] * 40, 30, (1, 2)), ([1] * 9, 0, (4,))], "meta", [1, 2, 3])

    logits = model(batch, kv)

    assert logits.device.type == "meta"
    assert logits.shape == (3, spec.vocab_size)
