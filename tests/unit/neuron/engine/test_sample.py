"""The sampler: greedy is greedy, a seed decides, filters cut where they say, shares come out right."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cortex_neuron.engine.choosing import Choosing
from cortex_neuron.engine.plan import Draw
from cortex_neuron.engine.sample import sample, uniform


def choosing(**fields: Any) -> Draw:
    """Draw by these settings, from a free choice among all tokens on."""
    return Draw(Choosing(**{"temperature": 1.0, **fields}), seed=0, index=0)


GREEDY = choosing(temperature=0)
FREE = choosing()
SHARES = [0.5, 0.25, 0.125, 0.125]


def logits(rows: int, vocab: int = 1000, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def drawn(probabilities: list[float], draw: Draw, count: int = 4000) -> Counter[int]:
    """Count what `count` draws with different random numbers give."""
    row = torch.tensor([probabilities]).log()
    return Counter(sample(row.expand(count, -1), [replace(draw, index=index) for index in range(count)]))


def test_greedy_takes_the_likeliest() -> None:
    scores = logits(5)

    assert sample(scores, [GREEDY] * 5) == scores.argmax(-1).tolist()


@pytest.mark.parametrize(
    "draw", [choosing(top_k=1), choosing(top_p=1e-9), choosing(temperature=1e-6), choosing(min_p=1)]
)
def test_one_candidate_is_as_good_as_greedy(draw: Draw) -> None:
    scores = logits(5)

    assert sample(scores, [replace(draw, index=i) for i in range(5)]) == sample(scores, [GREEDY] * 5)


@given(
    settings=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.7, 1.0, 5.0]),
            st.sampled_from([0.5, 0.95, 1.0]),
            st.sampled_from([0, 3, 400]),
            st.sampled_from([0.0, 0.001, 0.5]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_row_does_not_depend_on_its_neighbours(settings: list[tuple[float, float, int, float]]) -> None:
    scores = logits(len(settings))
    draws = [
        replace(choosing(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p), seed=9, index=row)
        for row, (temperature, top_p, top_k, min_p) in enumerate(settings)
    ]

    together = sample(scores, draws)

    assert together == [sample(scores[row : row + 1], [draw])[0] for row, draw in enumerate(draws)]


def test_a_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    scores = logits(1).expand(20, -1)

    first, again, other = (
        sample(scores, [replace(FREE, seed=seed, index=index) for index in range(20)]) for seed in (1, 1, 2)
    )

    assert first == again
    assert first != other


def test_random_numbers_are_spread_evenly() -> None:
    numbers = [uniform(seed, index) for seed in (-1, 0, 2**63) for index in range(1000)]

    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) == len(numbers)
    assert all(230 < count < 370 for count in Counter(int(number * 10) for number in numbers).values())


def test_tokens_come_out_in_their_shares() -> None:
    counts = drawn(SHARES, FREE)

    for token, share in enumerate(SHARES):
        assert abs(counts[token] / 4000 - share) < 4 * math.sqrt(share * (1 - share) / 4000)


def test_temperature_flattens() -> None:
    counts = drawn([0.8, 0.2], choosing(temperature=2.0))

    assert abs(counts[0] / 4000 - 2 / 3) < 0.03  # the shares are as the roots of 0.8 and 0.2


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.1, {0}), (0.49, {0}), (0.51, {0, 1}), (0.74, {0, 1}), (0.76, {0, 1, 2}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: set[int]) -> None:
    assert set(drawn([0.5, 0.25, 0.15, 0.1], choosing(top_p=top_p))) == kept


def test_top_p_counts_within_top_k() -> None:
    counts = drawn([0.4, 0.3, 0.2, 0.1], choosing(top_k=2, top_p=0.5))

    assert set(counts) == {0}  # 0.4 of the 0.7 that top_k keeps is over a half


@pytest.mark.parametrize("top_k", [2, 3])
def test_top_k_keeps_so_many(top_k: int) -> None:
    assert set(drawn([0.4, 0.3, 0.2, 0.1], choosing(top_k=top_k))) == set(range(top_k))


@pytest.mark.parametrize(("top_p", "top_k", "kept"), [(1.0, 0, 2000), (0.5, 0, 1000), (1.0, 700, 700)])
def test_a_flat_distribution_is_drawn_from_beyond_the_first_candidates(
    top_p: float, top_k: int, kept: int
) -> None:
    row = torch.linspace(0, -1e-3, 2000)[None]

    tokens = sample(
        row.expand(4000, -1), [replace(choosing(top_p=top_p, top_k=top_k), index=i) for i in range(4000)]
    )

    assert 0.97 * kept < max(tokens) <= kept
    assert abs(sum(tokens) / 4000 - kept / 2) < 0.05 * kept
