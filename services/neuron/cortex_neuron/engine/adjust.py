"""What a request does to the logits before a token is drawn: grammar, bias, penalties, barred tokens.

Sources: the repetition penalty is that of CTRL (arXiv 1909.05858) as in the RepetitionPenaltyLogitsProcessor
of transformers; presence and frequency penalty are OpenAI's, over the answer only, as in vLLM's
apply_penalties, which also has this order of the three.

Dimensions, as suffixes of tensor names:
    R  rows       V  vocabulary      E  entries: a row and a token       B  bytes of a mask
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cortex_neuron.engine.plan import Draw

_Entry = tuple[int, int, float]


def adjusted(logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Give new logits in float32; no entry of a row touches another row."""
    logits_RV = logits_RV.to(torch.float32, copy=True)
    for row, draw in enumerate(draws):
        if draw.constraint is not None:
            logits_RV[row].masked_fill_(~_unpacked(draw.constraint.allowed(), logits_RV[row]), -torch.inf)
    _bias(logits_RV, _biases(draws))
    _penalise(logits_RV, draws)
    _bias(logits_RV, ((row, token, -torch.inf) for row, draw in enumerate(draws) for token in draw.barred))
    return logits_RV


def _unpacked(mask: bytes, logits_V: Tensor) -> Tensor:
    """Give one truth value a token; tokens beyond the mask are not allowed."""
    bytes_B = torch.frombuffer(bytearray(mask), dtype=torch.uint8).to(logits_V.device)
    bits_BV = bytes_B[:, None] >> torch.arange(8, dtype=torch.uint8, device=logits_V.device) & 1
    allowed_V = torch.zeros_like(logits_V, dtype=torch.bool)
    count = min(len(allowed_V), bits_BV.numel())
    allowed_V[:count] = bits_BV.flatten()[:count].bool()
    return allowed_V


def _biases(draws: Sequence[Draw]) -> Iterable[_Entry]:
    return ((row, token, bias) for row, draw in enumerate(draws) for token, bias in draw.choosing.logit_bias)


def _bias(logits_RV: Tensor, entries: Iterable[_Entry]) -> None:
    """Add to the logits of some tokens, each named once."""
    listed = list(entries)
    if not listed:
        return
    rows, tokens, biases = zip(*listed, strict=True)
    logits_RV[list(rows), list(tokens)] += torch.tensor(biases, device=logits_RV.device)


def _penalise(logits_RV: Tensor, draws: Sequence[Draw]) -> None:
    """Make tokens that a request has already less likely."""
    entries = [
        (row, token, count, draw.choosing)
        for row, draw in enumerate(draws)
        if draw.counts is not None
        for token, count in draw.counts.in_output.items()
    ]
    if not entries:
        return
    places = torch.tensor([entry[:2] for entry in entries], device=logits_RV.device)
    factors = [
        (c.repetition_penalty, c.presence_penalty * (count > 0) + c.frequency_penalty * count)
        for _, _, count, c in entries
    ]
    factor_E, less_E = torch.tensor(factors, device=logits_RV.device).unbind(dim=1)
    rows_E, tokens_E = places.unbind(dim=1)
    logits_E = logits_RV[rows_E, tokens_E]
    logits_RV[rows_E, tokens_E] = torch.where(logits_E > 0, logits_E / factor_E, logits_E * factor_E) - less_E
