"""The next token of each row from its logits.

A row keeps its `top_k` likeliest tokens, of these the fewest whose probability reaches `top_p`,
and draws by one uniform number: the token at which the summed probability, likeliest first,
passes it. The number comes from the row's seed and index alone, so the choice does not depend on
the batch, the device or the history.

Nobody sorts a whole vocabulary if it can be helped: the likeliest `_NUM_CANDIDATES` nearly always
hold what is drawn; a row for which they do not is done again over all tokens.

Dimensions, as suffixes of tensor names:
    R  rows       V  vocabulary      C  candidates, likeliest first      1  one per row
"""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from cortex_neuron.engine.adjust import adjusted
from cortex_neuron.engine.choosing import Choosing, Logprobs
from cortex_neuron.engine.plan import Draw

_NUM_CANDIDATES = 256


def sample(logits_RV: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Choose one token a row; temperature 0, or `top_k` 1, takes the likeliest, the first of equals."""
    if not draws:
        return []
    if any(draw.is_adjusted for draw in draws):
        logits_RV = adjusted(logits_RV, draws)
    tokens: list[int] = logits_RV.argmax(dim=-1).tolist()
    random = [row for row, draw in enumerate(draws) if _is_random(draw.choosing)]
    if not random:
        return tokens
    if len(random) < len(draws):
        logits_RV = logits_RV[random]
    for row, token in zip(random, _draw(logits_RV, [draws[row] for row in random]), strict=True):
        tokens[row] = token
    return tokens


def logprobs(logits_RV: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[Logprobs]:
    """Tell how likely each of `tokens`, one a row, was, and the likeliest `counts[row]` in its place."""
    logprobs_RV = logits_RV.float().log_softmax(dim=-1)
    chosen = logprobs_RV.gather(1, torch.tensor(tokens, device=logits_RV.device)[:, None])[:, 0].tolist()
    values_RC, ids_RC = logprobs_RV.topk(min(max(counts), logits_RV.shape[1]), dim=-1)
    return [
        Logprobs(here, tuple(zip(ids[:count], values[:count], strict=True)))
        for here, ids, values, count in zip(chosen, ids_RC.tolist(), values_RC.tolist(), counts, strict=True)
    ]


def _is_random(choosing: Choosing) -> bool:
    return choosing.temperature > 0 and choosing.top_k != 1


def uniform(seed: int, index: int) -> float:
    """Give the `index`-th random number in [0, 1) of `seed`, 53 bits of it."""
    digest = blake2b(b"%d/%d" % (seed, index), digest_size=8).digest()
    return float((int.from_bytes(digest, "big") >> 11) * 2.0**-53)


def _draw(logits_RV: Tensor, draws: Sequence[Draw]) -> list[int]:
    num_tokens = logits_RV.shape[1]
    drawn = _draw_among(logits_RV, draws, min(_NUM_CANDIDATES, num_tokens))
    again = [row for row, token in enumerate(drawn) if token is None]
    if again:
        whole = _draw_among(logits_RV[again], [draws[row] for row in again], num_tokens)
        for row, token in zip(again, whole, strict=True):
            drawn[row] = token
    return [token for token in drawn if token is not None]


def _draw_among(logits_RV: Tensor, draws: Sequence[Draw], num_candidates: int) -> list[int | None]:
    """Draw from the likeliest `num_candidates`; None for a row that they do not suffice for."""
    num_tokens = logits_RV.shape[1]
    settings = [
        (c.temperature, c.top_p, c.top_k or num_tokens, c.min_p, uniform(draw.seed, draw.index))
        for draw in draws
        for c in (draw.choosing,)
    ]
    settings_R5 = torch.tensor(settings, dtype=torch.float64, device=logits_RV.device)
    temperature_R1, top_p_R1, top_k_R1, min_p_R1, uniform_R1 = torch.split(settings_R5, 1, dim=1)

    scaled_RV = logits_RV.float() / temperature_R1.float()
    scaled_RC, ids_RC = scaled_RV.topk(num_candidates, dim=-1)
    scaled_RC = scaled_RC.masked_fill(
        torch.arange(num_candidates, device=ids_RC.device) >= top_k_R1, -torch.inf
    )
    are_all_R1 = top_k_R1.clamp(max=num_tokens) <= num_candidates  # no other token can be drawn
    norm_R1 = torch.where(are_all_R1, scaled_RC.logsumexp(-1, True), scaled_RV.logsumexp(-1, True))
    sums_RC = (scaled_RC - norm_R1).double().exp().cumsum(dim=-1)

    last_R1 = (sums_RC < top_p_R1).sum(dim=-1, keepdim=True)  # of the nucleus; num_candidates: beyond them
    if any(draw.choosing.min_p or draw.is_adjusted for draw in draws):  # else it changes nothing
        last_R1 = last_R1.minimum(_last_likely(scaled_RC, min_p_R1))
    total_R1 = torch.where(are_all_R1, sums_RC[:, -1:], 1.0)
    reached_R1 = last_R1 < num_candidates
    mass_R1 = torch.where(reached_R1, sums_RC.gather(1, last_R1.clamp(max=num_candidates - 1)), total_R1)
    place_R1 = (sums_RC <= uniform_R1 * mass_R1).sum(dim=-1, keepdim=True)
    suffice_R1 = are_all_R1 | reached_R1 | ((top_p_R1 >= 1) & (place_R1 < num_candidates))

    place_R1 = place_R1.minimum(last_R1).clamp(max=num_candidates - 1)
    pairs = torch.cat([ids_RC.gather(1, place_R1), suffice_R1.long()], dim=1).tolist()
    return [token if suffices else None for token, suffices in pairs]


def _last_likely(scaled_RC: Tensor, min_p_R1: Tensor) -> Tensor:
    """Find the last candidate that is possible, and so likely as `min_p` asks; C if all of them are."""
    num_candidates = scaled_RC.shape[1]
    floor_R1 = (scaled_RC[:, :1] + min_p_R1.log().float()).clamp(min=torch.finfo(torch.float32).min)
    count_R1 = (scaled_RC >= floor_R1).sum(dim=-1, keepdim=True)
    return torch.where(count_R1 < num_candidates, count_R1 - 1, num_candidates)
