"""Llama and its kin: grouped-query attention and a gated MLP in every layer.

Dimensions, as suffixes of tensor names:
    T  tokens of all rows, end to end    N  query heads        H  width of one head
    D  model width                       K  key/value heads    I  width inside the MLP
A rank holds a share of N, K and I; T, D and H are whole.
Source: Llama, arXiv:2302.13971; GQA, arXiv:2305.13245; Qwen3, arXiv:2505.09388 (norms on q and k).
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from cortex_neuron.model.attention import LayerCache
from cortex_neuron.model.group import Group
from cortex_neuron.model.layers import Empty, RMSNorm, Rotation
from cortex_neuron.model.parallel import ColumnLinear, RowLinear
from cortex_neuron.model.spec import ModelSpec


class Attention(nn.Module):
    """Grouped-query attention with rotated queries and keys."""

    def __init__(self, spec: ModelSpec, empty: Empty, group: Group) -> None:
        super().__init__()
        self.head_dim = spec.head_dim
        q = group.shard.span(spec.num_heads, self.head_dim)
        kv = group.shard.kv_heads(spec.num_kv_heads, self.head_dim)
        self.heads = [cut.size // self.head_dim for cut in (q, kv, kv)]
        qkv = {"q_proj": q, "k_proj": kv, "v_proj": kv}
        self.qkv_proj = ColumnLinear(spec.dim, qkv, bias=spec.qkv_bias, empty=empty)
        self.o_proj = RowLinear(q, {"o_proj": spec.dim}, bias=spec.output_bias, empty=empty, group=group)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if spec.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, spec.rms_norm_eps, empty=empty)
            self.k_norm = RMSNorm(self.head_dim, spec.rms_norm_eps, empty=empty)

    def forward(self, x_TD: Tensor, rotation: Rotation, cache: LayerCache) -> Tensor:
        """Let every token see the past of its own row; returns y_TD."""
        qkv_TNH = self.qkv_proj(x_TD).unflatten(-1, (-1, self.head_dim))
        q_TNH, k_TKH, v_TKH = qkv_TNH.split(self.heads, dim=1)
        q_TNH, k_TKH = rotation(self.q_norm(q_TNH)), rotation(self.k_norm(k_TKH))
        y_TNH = cache.attend(q_TNH, k_TKH, v_TKH)
        y_TD: Tensor = self.o_proj(y_TNH.flatten(1))
        return y_TD


class MLP(nn.Module):
    """The gated MLP."""

    def __init__(self, spec: ModelSpec, empty: Empty, group: Group) -> None:
        super().__init__()
        width = group.shard.span(spec.intermediate_dim)
        gate_up, down = {"gate_proj": width, "up_proj": width}, {"down_proj": spec.dim}
        self.gate_up_proj = ColumnLinear(spec.dim, gate_up, bias=spec.mlp_bias, empty=empty)
        self.down_proj = RowLinear(width, down, bias=spec.mlp_bias, empty=empty, group=group)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Transform every token on its own; returns y_TD."""
        gate_TI, up_TI = self.gate_up_proj(x_TD).chunk(2, dim=-1)
        y_TD: Tensor = self.down_proj(F.silu(gate_TI) * up_TI)
        return y_TD


class Layer(nn.Module):
    """Attention, then the MLP, each on the normalised stream and added to it."""

    def __init__(
        self,
        spec: ModelSpec,
        _index: int,
        empty: Empty,
        group: Group,
        make_mlp: Callable[[ModelSpec, Empty, Group], nn.Module] = MLP,
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.dim, spec.rms_norm_eps, empty=empty)
        self.self_attn = Attention(spec, empty, group)
        self.post_attention_layernorm = RMSNorm(spec.dim, spec.rms_norm_eps, empty=empty)
        self.mlp = make_mlp(spec, empty, group)

    def forward(self, x_TD: Tensor, rotation: Rotation, cache: LayerCache) -> Tensor:
        """Return the stream after this layer, x_TD."""
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), rotation, cache)
        y_TD: Tensor = self.mlp(self.post_attention_layernorm(x_TD))
        return x_TD + y_TD
