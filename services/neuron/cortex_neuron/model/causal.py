"""A causal language model: an embedding, layers of one architecture, a norm, a head.

Dimensions, as suffixes of tensor names:
    T  tokens of all rows, end to end    D  model width    R  rows    V  vocabulary
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cortex_neuron.model.attention import LayerCache
from cortex_neuron.model.batch import Batch
from cortex_neuron.model.group import SOLO, Group
from cortex_neuron.model.kv import KvPool
from cortex_neuron.model.layers import (
    CenteredRMSNorm,
    Embedding,
    Empty,
    GatedRMSNorm,
    Linear,
    Placed,
    Places,
    RMSNorm,
    Rotary,
)
from cortex_neuron.model.parallel import Head, TiedHead, embedding
from cortex_neuron.model.places import Place
from cortex_neuron.model.spec import ModelSpec
from cortex_neuron.model.state import LayerState

MakeLayer = Callable[[ModelSpec, int, Empty, Group], nn.Module]
"""Makes the layer with that number: it maps (x_TD, rotation, cache) to x_TD."""


class Decoder(nn.Module):
    """All but the head; the attributes are named as checkpoints name them."""

    def __init__(self, spec: ModelSpec, make_layer: MakeLayer, empty: Empty, group: Group) -> None:
        super().__init__()
        self.embed_tokens = embedding(spec.vocab_size, spec.dim, empty=empty, group=group)
        self.layers = nn.ModuleList(make_layer(spec, i, empty, group) for i in range(spec.num_layers))
        norm = CenteredRMSNorm if spec.centered_norms else RMSNorm
        self.norm = norm(spec.dim, spec.rms_norm_eps, empty=empty)
        self.rotary = Rotary(spec.rope, spec.rotary_dim, self.norm.weight.device)
        self.layer_types = spec.layer_types

    def forward(self, batch: Batch, kv: KvPool) -> Tensor:
        """Run the layers; returns x_RD, the stream at the end of each row."""
        x_TD = self.embed_tokens(batch.tokens_T)
        rotation = self.rotary(batch.positions_T, x_TD.dtype)
        # Each layer takes what its kind remembers, in the order of the layers.
        caches = {
            "full_attention": iter(LayerCache.of(batch, kv)),
            "linear_attention": iter(LayerState.of(batch, kv.states)),
        }
        for layer, kind in zip(self.layers, self.layer_types, strict=True):
            x_TD = layer(x_TD, rotation, next(caches[kind]))
        x_RD: Tensor = self.norm(x_TD[batch.ends_R])
        return x_RD


class CausalModel(nn.Module):
    """Predicts the next token of every row of a batch; or one rank's part of what does."""

    def __init__(self, spec: ModelSpec, make_layer: MakeLayer, empty: Empty, group: Group = SOLO) -> None:
        super().__init__()
        self.spec = spec
        self.group = group
        self.model = Decoder(spec, make_layer, empty, group)
        self.lm_head: Linear = (
            TiedHead(self.model.embed_tokens, spec.vocab_size, group)
            if spec.tied
            else Head(spec.dim, spec.vocab_size, empty=empty, group=group)
        )

    def places(self) -> Places:
        """Name where each tensor of a checkpoint belongs."""
        places: Places = {}
        for path, module in self.named_modules():
            match module:
                case Linear():
                    parent = path.rpartition(".")[0]
                    places |= {f"{parent}.{n}".lstrip("."): p for n, p in module.places().items()}
                case Embedding():
                    places[f"{path}.weight"] = module.place()
                case RMSNorm() | CenteredRMSNorm() | GatedRMSNorm():
                    places[f"{path}.weight"] = Place.whole(module.weight)
                case Placed() if path:
                    places |= {f"{path}.{n}": p for n, p in module.places().items()}
        return places

    def linears(self) -> list[Linear]:
        """All matrices that are multiplied with."""
        return [module for module in self.modules() if isinstance(module, Linear)]

    @torch.inference_mode()
    def forward(self, batch: Batch, kv: KvPool) -> Tensor:
        """Store the batch's keys and values in `kv`; returns logits_RV in float32, a row each.

        Of several ranks only the leader gets them; what the others get means nothing.
        """
        x_RD = self.model(batch, kv)
        logits_RV: Tensor = self.lm_head(x_RD)
        return logits_RV.float()
