"""What is done to logits before a draw, against the formulas of others, one row and token at a time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from cortex_neuron.engine.adjust import adjusted
from cortex_neuron.engine.choosing import Choosing, Counts
from cortex_neuron.engine.plan import Draw
from cortex_neuron.engine.sample import logprobs, sample

VOCAB = 50


class Only:
    """A grammar that allows the same tokens for ever; its mask is `num_bytes` long."""

    is_over = False
    fault = ""

    def __init__(self, tokens: set[int], num_bytes: int = -(-VOCAB // 8)) -> None:
        self._tokens = tokens
        self._num_bytes = num_bytes

    def allowed(self) -> bytes:
        return sum(1 << token for token in self._tokens).to_bytes(self._num_bytes, "little")

    def advance(self, token: int) -> None:
        assert token in self._tokens


def logits(rows: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def draw(prompt: Sequence[int] = (), output: Sequence[int] = (), **fields: Any) -> Draw:
    counts = Counts(prompt)
    for token in output:
        counts.add(token)
    choosing = Choosing(**fields)
    return Draw(choosing, seed=1, index=len(output), counts=counts if choosing.penalises else None)


def by_the_book(row: Tensor, prompt: Sequence[int], output: Sequence[int], choosing: Choosing) -> Tensor:
    """Repetition as transformers has it; presence and frequency by the formula in OpenAI's description.

    mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence
    """
    for token, bias in choosing.logit_bias:
        row = row + bias * torch.nn.functional.one_hot(torch.tensor(token), VOCAB)
    seen = torch.tensor([[*prompt, *output]])
    row = RepetitionPenaltyLogitsProcessor(choosing.repetition_penalty)(seen, row[None])[0]
    for token, count in Counter(output).items():
        row[token] -= count * choosing.frequency_penalty + float(count > 0) * choosing.presence_penalty
    return row


TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=12)


PENALTIES = st.fixed_dictionaries(
    {
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.3]),
        "presence_penalty": st.sampled_from([-2.0, 0.0, 0.7]),
        "frequency_penalty": st.sampled_from([-1.0, 0.0, 0.4]),
    }
)


@settings(deadline=None)
@given(
    prompt=TOKENS.filter(bool),
    output=TOKENS,
    penalties=PENALTIES,
    biases=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=4),
)
def test_penalties_are_those_of_the_books(
    prompt: list[int], output: list[int], penalties: dict[str, float], biases: dict[int, float]
) -> None:
    asked = draw(prompt, output, logit_bias=tuple(biases.items()), **penalties)

    rows = adjusted(logits(2), [draw(), asked])

    torch.testing.assert_close(rows[1], by_the_book(logits(2)[1], prompt, output, asked.choosing))
    assert torch.equal(rows[0], logits(2)[0])


def test_only_the_answer_counts_for_presence_and_frequency() -> None:
    asked = draw([1, 1, 2], [2], presence_penalty=1, frequency_penalty=0.5)

    changed = (adjusted(logits(), [asked]) - logits())[0]

    assert changed.nonzero().flatten().tolist() == [2]
    assert changed[2].item() == pytest.approx(-1.5)


def test_what_is_given_is_not_changed() -> None:
    given_logits = logits()

    adjusted(
        given_logits, [replace(draw([1], [2], repetition_penalty=2, logit_bias=((3, 5.0),)), barred=(4,))]
    )

    assert torch.equal(given_logits, logits())


@settings(deadline=None)
@given(st.sets(st.integers(0, VOCAB - 1), min_size=1), st.sampled_from([-(-VOCAB // 8), 12]))
def test_a_grammar_leaves_what_it_allows_and_nothing_else(allowed: set[int], num_bytes: int) -> None:
    bound = replace(draw(), constraint=Only(allowed, num_bytes))

    rows = adjusted(logits(2), [bound, draw()])

    assert set(rows[0].isfinite().nonzero().flatten().tolist()) == allowed
    assert torch.equal(rows[0][list(allowed)], logits(2)[0][list(allowed)])
    assert torch.equal(rows[1], logits(2)[1])


def test_tokens_beyond_the_end_of_a_mask_are_not_allowed() -> None:
    rows = adjusted(logits(), [replace(draw(), constraint=Only({3}, num_bytes=1))])

    assert rows[0].isfinite().nonzero().flatten().tolist() == [3]


@settings(deadline=None)
@given(st.sets(st.integers(0, VOCAB - 1), min_size=1), st.integers(0, 100), st.sampled_from([0.0, 1.0, 50.0]))
def test_nothing_but_what_is_allowed_is_ever_drawn(allowed: set[int], index: int, temperature: float) -> None:
    bound = replace(draw(temperature=temperature), constraint=Only(allowed), index=index)

    assert sample(logits(), [bound])[0] in allowed


def test_a_barred_token_does_not_come_however_much_it_is_wanted() -> None:
    wanted = draw(logit_bias=((9, 100.0),))

    assert sample(logits(2), [wanted, replace(wanted, barred=(9,))])[0] == 9
    assert sample(logits(2), [wanted, replace(wanted, barred=(9,))])[1] != 9


def test_min_p_keeps_what_is_so_likely_against_the_likeliest() -> None:
    row = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    draws = [Draw(Choosing(temperature=1.0, min_p=0.5), seed=0, index=index) for index in range(300)]

    assert set(sample(row.expand(300, -1), draws)) == {0, 1, 2}


def test_logprobs_are_those_of_the_raw_logits() -> None:
    expected = torch.log_softmax(logits(2), dim=-1)

    first, second = logprobs(logits(2), [7, 8], [0, 3])

    assert first.chosen == pytest.approx(expected[0, 7].item())
    assert first.top == ()
    assert [token for token, _ in second.top] == expected[1].topk(3).indices.tolist()
    assert [value for _, value in second.top] == pytest.approx(expected[1].topk(3).values.tolist())
