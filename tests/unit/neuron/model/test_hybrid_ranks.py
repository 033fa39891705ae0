"""Recurrent layers and experts on several ranks: the answers of one, and two sums a layer."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.checkpoints import (
    as_released,
    write_qwen3_5,
    write_qwen3_5_moe,
    write_qwen3_moe,
    write_qwen3_next,
)
from builders.models import load_quietly, logits_at_each, random_tokens
from builders.threads import Threads, on_ranks
from cortex_neuron.model import qwen35
from cortex_neuron.model.batch import Batch
from cortex_neuron.model.causal import CausalModel
from cortex_neuron.model.kv import KvPool
from cortex_neuron.model.shard import Cut
from cortex_neuron.model.spec import check_world, footprint, read_spec, state_slot_bytes
from cortex_proto.errors import LoadFailedError

TOKENS = random_tokens(100)


def cache(model: CausalModel, group: Threads) -> KvPool:
    return KvPool(model.spec, group.shard, num_pages=4, num_slots=2, dtype=torch.float32)


def logits_after(model: CausalModel, group: Threads) -> Tensor:
    """A prompt in two chunks, then three tokens one by one; the logits after each."""
    kv = cache(model, group)
    cuts = [0, 64, 97, 98, 99, 100]
    steps = [
        Batch.of([(TOKENS[start:stop], start, (1, 2))], state_slots=[1]) for start, stop in pairwise(cuts)
    ]
    return torch.cat([model(step, kv) for step in steps])


CASES: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "qwen3_5": (write_qwen3_5, {}),
    "qwen3_5, more value heads": (write_qwen3_5, {"linear_num_value_heads": 8}),
    "qwen3_5_moe": (write_qwen3_5_moe, {}),
    "qwen3_5_moe, fused": (lambda path: as_released(write_qwen3_5_moe(path)), {}),
    "qwen3_next": (write_qwen3_next, {}),
    "qwen3_moe": (write_qwen3_moe, {}),
}


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize(("write", "overrides"), CASES.values(), ids=CASES.keys())
def test_ranks_together_answer_as_one(
    tmp_path: Path, world: int, write: Callable[..., Path], overrides: dict[str, Any]
) -> None:
    path = write(tmp_path, **overrides)
    expected = logits_at_each(load_quietly(path), TOKENS)[[63, 96, 97, 98, 99]]

    leaders, *_ = on_ranks(path, world, logits_after)

    torch.testing.assert_close(leaders, expected, atol=5e-5, rtol=0)
    assert torch.equal(leaders.argmax(-1), expected.argmax(-1))


def test_a_uniform_cut_of_what_is_fused_gives_other_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uniform(*cuts: Cut) -> Cut:
        whole, size = sum(cut.whole for cut in cuts), sum(cut.size for cut in cuts)
        start = whole * cuts[-1].spans[0].start // cuts[-1].whole
        return Cut(whole, (range(start, start + size),))

    path = write_qwen3_5(tmp_path)
    expected = logits_at_each(load_quietly(path), TOKENS)[-1]
    monkeypatch.setattr(qwen35, "regions", uniform)

    leaders, _ = on_ranks(path, 2, logits_after)

    assert (leaders[-1] - expected).abs().max() > 0.1


@pytest.mark.parametrize(
    "write", [write_qwen3_5, write_qwen3_next, write_qwen3_moe], ids=lambda w: w.__name__
)
def test_a_layer_has_two_sums_and_none_inside_the_recurrence(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    def sums_of_a_step(model: CausalModel, group: Threads) -> list[int]:
        model(Batch.of([(TOKENS[:10], 0, (1,))], state_slots=[1]), cache(model, group))
        return group.sums

    path = write(tmp_path)

    of_leader, of_other = on_ranks(path, 2, sums_of_a_step)

    spec = read_spec(path)
    assert of_leader == of_other == [10 * spec.dim] * (1 + 2 * spec.num_layers)


@pytest.mark.parametrize("world", [2, 4])
def test_a_rank_holds_what_was_booked_and_its_share_of_the_state(tmp_path: Path, world: int) -> None:
    spec = read_spec(write_qwen3_next(tmp_path))

    def held(model: CausalModel, group: Threads) -> tuple[int, int]:
        states = cache(model, group).states
        packed = sum(linear.form.packed.nbytes for linear in model.linears())  # type: ignore[attr-defined]
        weight_bytes = packed + sum(p.nbytes for p in model.parameters())
        return weight_bytes, states.s.nbytes + states.tails.nbytes

    (leaders, state_bytes), *_ = on_ranks(tmp_path, world, held)

    booked = footprint(spec, "float32", world=world).weight_bytes
    assert 0.99 * booked <= leaders <= booked
    assert state_bytes == 2 * state_slot_bytes(spec, "float32", world)
    assert state_bytes < 2 * state_slot_bytes(spec, "float32") / world * 1.5


@pytest.mark.parametrize(
    ("overrides", "because"),
    [
        ({"linear_num_value_heads": 6}, "6 linear value heads cannot be shared by 4 ranks"),
        (
            {"linear_num_key_heads": 3, "linear_num_value_heads": 12},
            "3 key/value heads cannot be shared by 4",
        ),
        ({"moe_intermediate_size": 30}, "30 columns of an expert cannot be shared by 4 ranks"),
        ({"shared_expert_intermediate_size": 30}, "30 columns of the shared expert cannot be shared by 4"),
    ],
    ids=str,
)
def test_a_world_that_does_not_divide_is_refused_with_the_numbers(
    tmp_path: Path, overrides: dict[str, Any], because: str
) -> None:
    spec = read_spec(write_qwen3_5_moe(tmp_path, **overrides))

    with pytest.raises(LoadFailedError, match=because):
        check_world(spec, 4)
