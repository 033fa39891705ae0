"""Qwen3.5 and Qwen3-Next: three layers of Gated DeltaNet, then one of gated attention.

Dimensions, as suffixes of tensor names:
    T  tokens of all rows, end to end    N  heads, of queries or of values    C  channels, q | k | v
    D  model width                       G  key/value heads                   K  width of a linear key
    B  rows that decode                  H  width of one head                 V  width of a linear value
    M  key heads of a linear layer       R  widths of a head that turn
A rank holds a share of N, G, M and C, cut within q, k and v each; T, D, H, K and V are whole.
Source: Gated Delta Networks, arXiv:2412.06464; gated attention, arXiv:2505.06708; transformers, qwen3_5.
"""

import torch
from torch import Tensor, nn

from cortex_neuron.model import delta
from cortex_neuron.model.attention import LayerCache
from cortex_neuron.model.group import Group
from cortex_neuron.model.layers import CenteredRMSNorm, Empty, GatedRMSNorm, Places, Rotation, parameter
from cortex_neuron.model.moe import feed_forward
from cortex_neuron.model.parallel import ColumnLinear, RowLinear
from cortex_neuron.model.places import Place
from cortex_neuron.model.shard import Cut, regions
from cortex_neuron.model.spec import ModelSpec
from cortex_neuron.model.state import LayerState


class GatedAttention(nn.Module):
    """Grouped-query attention whose every head is scaled by a gate; a part of each head is rotated."""

    def __init__(self, spec: ModelSpec, empty: Empty, group: Group) -> None:
        super().__init__()
        self.head_dim = spec.head_dim
        # A query head and its gate lie side by side, so a head is twice as wide in q_proj.
        q_and_gate = group.shard.span(spec.num_heads, 2 * self.head_dim)
        q = group.shard.span(spec.num_heads, self.head_dim)
        kv = group.shard.kv_heads(spec.num_kv_heads, self.head_dim)
        self.heads = [cut.size // self.head_dim for cut in (q_and_gate, kv, kv)]
        qkv = {"q_proj": q_and_gate, "k_proj": kv, "v_proj": kv}
        self.qkv_proj = ColumnLinear(spec.dim, qkv, bias=spec.qkv_bias, empty=empty)
        self.o_proj = RowLinear(q, {"o_proj": spec.dim}, bias=spec.output_bias, empty=empty, group=group)
        self.q_norm = CenteredRMSNorm(self.head_dim, spec.rms_norm_eps, empty=empty)
        self.k_norm = CenteredRMSNorm(self.head_dim, spec.rms_norm_eps, empty=empty)

    def forward(self, x_TD: Tensor, rotation: Rotation, cache: LayerCache) -> Tensor:
        """Let every token see the past of its own row; returns y_TD."""
        qkv = self.qkv_proj(x_TD).unflatten(-1, (-1, self.head_dim))
        q_and_gate, k_TGH, v_TGH = qkv.split(self.heads, dim=1)
        q_TNH, gate_TNH = q_and_gate.unflatten(1, (-1, 2)).unbind(2)
        q_TNH, k_TGH = _turned(self.q_norm(q_TNH), rotation), _turned(self.k_norm(k_TGH), rotation)
        y_TNH = cache.attend(q_TNH, k_TGH, v_TGH) * gate_TNH.sigmoid()
        y_TD: Tensor = self.o_proj(y_TNH.flatten(1))
        return y_TD


def _turned(x_TNH: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the first R widths of each head, as many as there are angles; the rest stays."""
    width = rotation.cos_T1H.shape[-1]
    return torch.cat([rotation(x_TNH[..., :width]), x_TNH[..., width:]], dim=-1)


class Convolution(nn.Module):
    """The weights of a convolution along the tokens, a few taps for every channel."""

    def __init__(self, channels: Cut, num_taps: int, *, empty: Empty) -> None:
        super().__init__()
        self.channels = channels
        self.weight_C1W = parameter(empty(channels.size, 1, num_taps))

    def places(self) -> Places:
        """Name the weights."""
        return {"weight": Place.of(self.weight_C1W, 0, self.channels)}


class GatedDeltaNet(nn.Module):
    """Linear attention: each value head has a memory that the gated delta rule writes and reads."""

    def __init__(self, spec: ModelSpec, empty: Empty, group: Group) -> None:
        super().__init__()
        it, shard = spec.delta, group.shard
        self.k_dim, self.v_dim = it.k_dim, it.v_dim
        k, v = shard.kv_heads(it.num_k_heads, it.k_dim), shard.span(it.num_v_heads, it.v_dim)
        self.heads, channels = shard.span(it.num_v_heads), regions(k, k, v)
        self.shared = self.heads.size * it.k_dim // k.size
        """Value heads of one key head."""
        self.regions = [k.size, k.size, v.size]
        """The widths of q, k and v in what is convolved."""
        outputs = {"in_proj_qkv": channels, "in_proj_z": v, "in_proj_b": self.heads, "in_proj_a": self.heads}
        self.widths = [cut.size for cut in outputs.values()]
        self.in_proj = ColumnLinear(spec.dim, outputs, bias=False, empty=empty)
        self.conv1d = Convolution(channels, it.num_taps, empty=empty)
        # Small, and what they decide is raised to the power of the sequence's length.
        self.A_log_N = parameter(empty(self.heads.size, dtype=torch.float32))
        self.dt_bias_N = parameter(empty(self.heads.size, dtype=torch.float32))
        self.norm = GatedRMSNorm(it.v_dim, spec.rms_norm_eps, empty=empty)
        self.out_proj = RowLinear(v, {"out_proj": spec.dim}, bias=False, empty=empty, group=group)

    def places(self) -> Places:
        """Name what decides the decay."""
        decay = {"A_log": self.A_log_N, "dt_bias": self.dt_bias_N}
        return {name: Place.of(part, 0, self.heads) for name, part in decay.items()}

    def forward(self, x_TD: Tensor, state: LayerState) -> Tensor:
        """Let every token write to and read from the memory of its own row; returns y_TD."""
        m_TC, z, b_TN, a_TN = torch.split(self.in_proj(x_TD), self.widths, dim=-1)
        g_TN = delta.log_decay(a_TN, self.A_log_N, self.dt_bias_N)
        beta_TN = b_TN.float().sigmoid()
        num = state.num_decoding
        parts = [self._step(m_TC[:num], (g_TN[:num], beta_TN[:num]), state)] if num else []
        for row in state.chunks:
            span = slice(row.start, row.stop)
            parts.append(self._chunks(m_TC[span], (g_TN[span], beta_TN[span]), state, row.slot))
        o_TNV = self.norm(torch.cat(parts), _by_head(z, self.v_dim))
        y_TD: Tensor = self.out_proj(o_TNV.to(x_TD.dtype).flatten(1))
        return y_TD

    def _step(self, m_BC: Tensor, gates: tuple[Tensor, Tensor], state: LayerState) -> Tensor:
        slots_B = state.decoding_B
        y_BC, tail_BCX = delta.convolve_step(m_BC, state.tails_SCX[slots_B], self.conv1d.weight_C1W)
        o_BNV, s_BNKV = delta.step(*self._heads(y_BC), gates, state.s_SNKV[slots_B])
        state.tails_SCX[slots_B] = tail_BCX
        state.s_SNKV[slots_B] = s_BNKV
        return o_BNV

    def _chunks(self, m_TC: Tensor, gates: tuple[Tensor, Tensor], state: LayerState, slot: int) -> Tensor:
        y_TC, tail_CX = delta.convolve(m_TC, state.tails_SCX[slot], self.conv1d.weight_C1W)
        o_TNV, s_NKV = delta.chunks(*self._heads(y_TC), gates, state.s_SNKV[slot])
        state.tails_SCX[slot] = tail_CX
        state.s_SNKV[slot] = s_NKV
        return o_TNV

    def _heads(self, y_TC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cut into q_TNK, k_TNK and v_TNV; neighbouring value heads share a key head."""
        q, k, v = torch.split(y_TC, self.regions, dim=-1)
        q_TMK, k_TMK = (delta.normalised(_by_head(x, self.k_dim)) for x in (q, k))
        q_TNK = (q_TMK * self.k_dim**-0.5).repeat_interleave(self.shared, dim=1)
        return q_TNK, k_TMK.repeat_interleave(self.shared, dim=1), _by_head(v, self.v_dim).float()


def _by_head(x: Tensor, width: int) -> Tensor:
    """Tell the heads of each token apart; returns x_TNK for a width K."""
    return x.reshape(len(x), -1, width)


class AttentionLayer(nn.Module):
    """Gated attention, then the MLP, each on the normalised stream and added to it."""

    def __init__(self, spec: ModelSpec, index: int, empty: Empty, group: Group) -> None:
        super().__init__()
        self.input_layernorm = CenteredRMSNorm(spec.dim, spec.rms_norm_eps, empty=empty)
        self.self_attn = GatedAttention(spec, empty, group)
        self.post_attention_layernorm = CenteredRMSNorm(spec.dim, spec.rms_norm_eps, empty=empty)
        self.mlp = feed_forward(spec, index)(spec, empty, group)

    def forward(self, x_TD: Tensor, rotation: Rotation, cache: LayerCache) -> Tensor:
        """Return the stream after this layer, x_TD."""
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), rotation, cache)
        y_TD: Tensor = self.mlp(self.post_attention_layernorm(x_TD))
        return x_TD + y_TD


class DeltaLayer(nn.Module):
    """Gated DeltaNet, then the MLP; positions come from the order of the writes alone."""

    def __init__(self, spec: ModelSpec, index: int, empty: Empty, group: Group) -> None:
        super().__init__()
        self.input_layernorm = CenteredRMSNorm(spec.dim, spec.rms_norm_eps, empty=empty)
        self.linear_attn = GatedDeltaNet(spec, empty, group)
        self.post_attention_layernorm = CenteredRMSNorm(spec.dim, spec.rms_norm_eps, empty=empty)
        self.mlp = feed_forward(spec, index)(spec, empty, group)

    def forward(self, x_TD: Tensor, _rotation: Rotation, state: LayerState) -> Tensor:
        """Return the stream after this layer, x_TD."""
        x_TD = x_TD + self.linear_attn(self.input_layernorm(x_TD), state)
        y_TD: Tensor = self.mlp(self.post_attention_layernorm(x_TD))
        return x_TD + y_TD


def layer(spec: ModelSpec, index: int, empty: Empty, group: Group) -> nn.Module:
    """Make the layer that stands at `index`."""
    kind = AttentionLayer if spec.layer_types[index] == "full_attention" else DeltaLayer
    return kind(spec, index, empty, group)
