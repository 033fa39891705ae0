"""The gated delta rule: a memory per head that decays, forgets what it held for a key, and stores anew.

    S_t = e^g_t S_(t-1) + k_t u_t^T     u_t = beta_t (v_t - (e^g_t S_(t-1))^T k_t)     o_t = S_t^T q_t

Two forms of the same sum: a step for rows that decode, and chunks for prompts, where all but the
passage from one chunk to the next runs side by side. Everything here is float32.

Dimensions, as suffixes of tensor names:
    T  tokens of one row     N  value heads        C  channels of the convolution
    B  rows that decode      K  width of a key     W  taps of the convolution
    J  chunks                V  width of a value   X  taps but one: the inputs that are remembered
    L  tokens of a chunk
Source: Gated Delta Networks, arXiv:2412.06464; the chunked form is section 3.3 there (WY representation).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
_NORM_EPS = 1e-6


def convolve(m_TC: Tensor, tail_CX: Tensor, weight_C1W: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each channel with its own last inputs; returns y_TC and the new tail_CX."""
    window_CM = torch.cat([tail_CX, m_TC.T], dim=1)
    y_CT = F.conv1d(window_CM[None], weight_C1W, groups=len(weight_C1W))[0]
    return F.silu(y_CT).T, window_CM[:, len(m_TC) :]


def convolve_step(m_BC: Tensor, tail_BCX: Tensor, weight_C1W: Tensor) -> tuple[Tensor, Tensor]:
    """Do as `convolve` for one token of each row; returns y_BC and the new tail_BCX."""
    window_BCW = torch.cat([tail_BCX, m_BC[:, :, None]], dim=-1)
    y_BC = (window_BCW.float() * weight_C1W[:, 0].float()).sum(-1)
    return F.silu(y_BC).to(m_BC.dtype), window_BCW[..., 1:]


def log_decay(a_TN: Tensor, A_log_N: Tensor, dt_bias_N: Tensor) -> Tensor:
    """How much of the memory each token leaves, as a logarithm; returns g_TN, never above 0."""
    return -A_log_N.exp() * F.softplus(a_TN.float() + dt_bias_N)


def normalised(x_TNK: Tensor) -> Tensor:
    """Scale each vector to length 1, in float32."""
    x_TNK = x_TNK.float()
    return x_TNK * (x_TNK.square().sum(-1, keepdim=True) + _NORM_EPS).rsqrt()


def step(
    q_BNK: Tensor, k_BNK: Tensor, v_BNV: Tensor, gates: tuple[Tensor, Tensor], s_BNKV: Tensor
) -> tuple[Tensor, Tensor]:
    """Advance each row by one token; `gates` are g_BN and beta_BN. Returns o_BNV and the new s_BNKV.

    S is read once for both products: with a = S^T k and b = S^T q, o = e^g b + (q k) u.
    """
    g_BN, beta_BN = gates
    decay_BN1 = g_BN.exp()[..., None]
    a_BNV, b_BNV = (torch.stack([k_BNK, q_BNK], dim=2) @ s_BNKV).unbind(2)
    u_BNV = beta_BN[..., None] * (v_BNV - decay_BN1 * a_BNV)
    o_BNV = decay_BN1 * b_BNV + (q_BNK * k_BNK).sum(-1, keepdim=True) * u_BNV
    return o_BNV, torch.addcmul(s_BNKV * decay_BN1[..., None], k_BNK[..., None], u_BNV[..., None, :])


def chunks(
    q_TNK: Tensor, k_TNK: Tensor, v_TNV: Tensor, gates: tuple[Tensor, Tensor], s_NKV: Tensor
) -> tuple[Tensor, Tensor]:
    """Advance one row by all its tokens; `gates` are g_TN and beta_TN. Returns o_TNV and the new s_NKV.

    Inside a chunk, u is what solves (I + A) u = beta (v - e^G S^T k), where G is g summed up from
    the chunk's start and A_ij = beta_i (k_i k_j) e^(G_i - G_j) for j < i: forward substitution.
    """
    num_tokens = len(q_TNK)
    length = min(CHUNK, num_tokens)
    q_JNLK, k_JNLK, v_JNLV = (_cut(x, length) for x in (q_TNK, k_TNK, v_TNV))
    g_JNL1, beta_JNL1 = (_cut(x[..., None], length) for x in gates)
    g_JNL1 = g_JNL1.cumsum(2)
    g_last_JN11 = g_JNL1[:, :, -1:]
    # What lies above the diagonal may overflow; it is cut off wherever this is used.
    decay_JNLL = (g_JNL1 - g_JNL1.mT).exp()
    written_JNLK = beta_JNL1 * k_JNLK
    a_JNLL = (written_JNLK @ k_JNLK.mT * decay_JNLL).tril(-1)
    wanted = torch.cat([beta_JNL1 * v_JNLV, written_JNLK * g_JNL1.exp()], dim=-1)
    solved = torch.linalg.solve_triangular(a_JNLL, wanted, upper=False, unitriangular=True)
    fresh_JNLV, held_JNLK = solved.split([v_JNLV.shape[-1], k_JNLK.shape[-1]], dim=-1)
    within_JNLL = (q_JNLK @ k_JNLK.mT * decay_JNLL).tril()
    q_JNLK = q_JNLK * g_JNL1.exp()
    k_JNLK = k_JNLK * (g_last_JN11 - g_JNL1).exp()
    o_JNLV = torch.empty_like(v_JNLV)
    for j, decay_N11 in enumerate(g_last_JN11.exp().unbind()):
        u_NLV = fresh_JNLV[j] - held_JNLK[j] @ s_NKV
        o_JNLV[j] = q_JNLK[j] @ s_NKV + within_JNLL[j] @ u_NLV
        s_NKV = decay_N11 * s_NKV + k_JNLK[j].mT @ u_NLV
    return o_JNLV.transpose(1, 2).flatten(0, 1)[:num_tokens], s_NKV


def _cut(x_TNK: Tensor, length: int) -> Tensor:
    """Cut into chunks of `length` tokens, x_JNLK; zeros fill the last one, and change nothing there."""
    x_TNK = F.pad(x_TNK, (0, 0, 0, 0, 0, -len(x_TNK) % length))
    return x_TNK.view(-1, length, *x_TNK.shape[1:]).transpose(1, 2)
