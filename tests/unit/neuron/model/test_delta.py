"""Both forms of the gated delta rule equal the rule as it is written down."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cortex_neuron.model import delta

HEADS, KEY, VALUE = 3, 16, 24


@dataclass(frozen=True)
class Sequence:
    """What one row brings; g are logarithms of decays."""

    q_TNK: Tensor
    k_TNK: Tensor
    v_TNV: Tensor
    g_TN: Tensor
    beta_TN: Tensor
    s_NKV: Tensor


def sequence(num_tokens: int, seed: int = 0) -> Sequence:
    random = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    return Sequence(
        delta.normalised(drawn(num_tokens, HEADS, KEY)) * KEY**-0.5,
        delta.normalised(drawn(num_tokens, HEADS, KEY)),
        drawn(num_tokens, HEADS, VALUE),
        -F.softplus(drawn(num_tokens, HEADS) * 2),
        drawn(num_tokens, HEADS).sigmoid(),
        drawn(HEADS, KEY, VALUE),
    )


def token_by_token(it: Sequence) -> tuple[Tensor, Tensor]:
    """The rule word for word, in float64."""
    s_NKV = it.s_NKV.double()
    read = []
    for q_NK, k_NK, v_NV, g_N, beta_N in zip(it.q_TNK, it.k_TNK, it.v_TNV, it.g_TN, it.beta_TN, strict=True):
        s_NKV = s_NKV * g_N.double().exp()[:, None, None]
        held_NV = torch.einsum("nkv,nk->nv", s_NKV, k_NK.double())
        u_NV = beta_N.double()[:, None] * (v_NV.double() - held_NV)
        s_NKV = s_NKV + torch.einsum("nk,nv->nkv", k_NK.double(), u_NV)
        read.append(torch.einsum("nkv,nk->nv", s_NKV, q_NK.double()))
    return torch.stack(read).float(), s_NKV.float()


def in_steps(it: Sequence) -> tuple[Tensor, Tensor]:
    s_1NKV = it.s_NKV[None]
    read = []
    tokens = zip(it.q_TNK, it.k_TNK, it.v_TNV, it.g_TN, it.beta_TN, strict=True)
    for q, k, v, g, beta in tokens:
        o_1NV, s_1NKV = delta.step(q[None], k[None], v[None], (g[None], beta[None]), s_1NKV)
        read.append(o_1NV)
    return torch.cat(read), s_1NKV[0]


def in_chunks(it: Sequence) -> tuple[Tensor, Tensor]:
    return delta.chunks(it.q_TNK, it.k_TNK, it.v_TNV, (it.g_TN, it.beta_TN), it.s_NKV)


def correlated(it: Sequence) -> Sequence:
    """Nearly the same key again and again, always written over in full: A is full of ones."""
    k_TNK = delta.normalised(it.k_TNK[:1] + 0.02 * it.k_TNK)
    return replace(it, k_TNK=k_TNK, beta_TN=torch.ones_like(it.beta_TN), g_TN=it.g_TN * 1e-3)


def forgetful(it: Sequence) -> Sequence:
    """A decay so strong that its inverse would overflow within a chunk."""
    return replace(it, g_TN=it.g_TN * 30)


def lasting(it: Sequence) -> Sequence:
    return replace(it, g_TN=torch.zeros_like(it.g_TN))


SEQUENCES = {
    **{f"{num} tokens": sequence(num) for num in (1, 2, 63, 64, 65, 128, 200)},
    "correlated keys": correlated(sequence(150)),
    "strong decay": forgetful(sequence(150)),
    "no decay": lasting(sequence(150)),
}


@pytest.mark.parametrize("form", [in_steps, in_chunks])
@pytest.mark.parametrize("it", SEQUENCES.values(), ids=SEQUENCES.keys())
def test_each_form_equals_the_rule(form: Callable[[Sequence], tuple[Tensor, Tensor]], it: Sequence) -> None:
    o_TNV, s_NKV = form(it)

    expected_TNV, expected_NKV = token_by_token(it)
    torch.testing.assert_close(o_TNV, expected_TNV, atol=1e-5, rtol=0)
    torch.testing.assert_close(s_NKV, expected_NKV, atol=1e-5, rtol=0)


def test_rows_step_together_as_each_alone() -> None:
    rows = [sequence(1, seed) for seed in range(4)]
    names = ("q_TNK", "k_TNK", "v_TNV", "g_TN", "beta_TN")
    q, k, v, g, beta = (torch.cat([getattr(row, name) for row in rows]) for name in names)

    o_BNV, s_BNKV = delta.step(q, k, v, (g, beta), torch.stack([row.s_NKV for row in rows]))

    for row, o_NV, s_NKV in zip(rows, o_BNV, s_BNKV, strict=True):
        expected_1NV, expected_NKV = token_by_token(row)
        torch.testing.assert_close(o_NV, expected_1NV[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(s_NKV, expected_NKV, atol=1e-5, rtol=0)


def test_tokens_of_nothing_leave_the_memory_as_it_is() -> None:
    nothing = [torch.zeros(10, *shape) for shape in ((HEADS, KEY), (HEADS, KEY), (HEADS, VALUE))]
    gates = (torch.zeros(10, HEADS), torch.zeros(10, HEADS))
    s_NKV = sequence(1).s_NKV

    o_TNV, after_NKV = delta.chunks(nothing[0], nothing[1], nothing[2], gates, s_NKV)

    assert torch.equal(after_NKV, s_NKV)
    assert torch.count_nonzero(o_TNV) == 0


@pytest.mark.parametrize("cut", [1, 2, 3, 40])
def test_the_convolution_remembers_its_last_inputs(cut: int) -> None:
    m_TC, weight_C1W = torch.randn(50, 6), torch.randn(6, 1, 4)
    whole_TC, tail_CX = delta.convolve(m_TC, torch.zeros(6, 3), weight_C1W)

    first_TC, between_CX = delta.convolve(m_TC[:cut], torch.zeros(6, 3), weight_C1W)
    rest = []
    for m_C in m_TC[cut:]:
        y_1C, between_1CX = delta.convolve_step(m_C[None], between_CX[None], weight_C1W)
        between_CX = between_1CX[0]
        rest.append(y_1C)

    torch.testing.assert_close(torch.cat([first_TC, *rest]), whole_TC, atol=1e-6, rtol=0)
    assert torch.equal(between_CX, tail_CX)
    assert torch.equal(tail_CX, m_TC[-3:].T)


def test_the_convolution_sees_this_input_last() -> None:
    m_TC, weight_C1W = torch.tensor([[1.0], [10.0]]), torch.tensor([[[0.0, 0.0, 0.5, 1.0]]])

    y_TC, _ = delta.convolve(m_TC, torch.zeros(1, 3), weight_C1W)

    torch.testing.assert_close(y_TC, F.silu(torch.tensor([[1.0], [10.5]])))
