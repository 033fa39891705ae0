"""Attention over pages: each row of a step attends to its own past.

Two shapes of the same sum. A decoding token takes the query heads of each key/value head as rows
of one small matrix, which needs no mask and no repeated keys. A chunk of a prompt is causal among
itself and sees all of its past.

Dimensions, as suffixes of tensor names:
    T  tokens of all rows, end to end     K  key/value heads
    U  tokens of one row in this step     G  query heads per key/value head
    L  tokens of one row in the cache     N  query heads, K * G
    P  pages of the whole cache           H  width of one head
    O  offsets in a page                  S  slots of the whole cache, P * O
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cortex_neuron.model.batch import Batch, Row
from cortex_neuron.model.kv import KvPool
from cortex_neuron.model.spec import PAGE


class _Past(Protocol):
    """Where the keys and values of one row are, in one layer."""

    def read(self) -> tuple[Tensor, Tensor]:
        """Give k_1KLH and v_1KLH, this step's own included."""
        ...


@dataclass(frozen=True, slots=True)
class _Run:
    """Adjacent pages: a view."""

    k_1KLH: Tensor
    v_1KLH: Tensor

    def read(self) -> tuple[Tensor, Tensor]:
        return self.k_1KLH, self.v_1KLH


@dataclass(frozen=True, slots=True)
class _Scattered:
    """Pages here and there: gathered at each reading."""

    k_KPOH: Tensor
    v_KPOH: Tensor
    pages: Tensor
    length: int

    def read(self) -> tuple[Tensor, Tensor]:
        return self._gathered(self.k_KPOH), self._gathered(self.v_KPOH)

    def _gathered(self, cache_KPOH: Tensor) -> Tensor:
        return cache_KPOH.index_select(1, self.pages).flatten(1, 2)[None, :, : self.length]


def _pasts(row: Row, kv: KvPool) -> list[_Past]:
    """Find the keys and values of a row, in every layer."""
    first = row.pages[0]
    if row.pages == tuple(range(first, first + len(row.pages))):
        span = slice(first * PAGE, first * PAGE + row.length)
        k, v = (cache.flatten(2, 3)[:, None, :, span].unbind() for cache in (kv.k, kv.v))
        return [_Run(k_1KLH, v_1KLH) for k_1KLH, v_1KLH in zip(k, v, strict=True)]
    pages = torch.tensor(row.pages, device=kv.k.device)
    layers = zip(kv.k.unbind(), kv.v.unbind(), strict=True)
    return [_Scattered(k_KPOH, v_KPOH, pages, row.length) for k_KPOH, v_KPOH in layers]


def _mask(row: Row, device: torch.device) -> Tensor | None:
    """True where a token sees a key, for a chunk that has a past; others need none.

    `is_causal` would not do: it aligns the triangle with the first key instead of the last.
    """
    num_tokens = row.stop - row.start
    if num_tokens == 1 or not row.past:
        return None
    return torch.ones(num_tokens, row.length, dtype=torch.bool, device=device).tril(row.past)


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The keys and values of one layer, as one step sees them."""

    k_KSH: Tensor
    v_KSH: Tensor
    batch: Batch
    masks: tuple[Tensor | None, ...]
    pasts: tuple[_Past, ...]

    @classmethod
    def of(cls, batch: Batch, kv: KvPool) -> "list[LayerCache]":
        """Prepare every layer for one step; what the layers share is made once."""
        masks = tuple(_mask(row, kv.k.device) for row in batch.rows)
        pasts_of_rows = [_pasts(row, kv) for row in batch.rows]
        k, v = (cache.flatten(2, 3).unbind() for cache in (kv.k, kv.v))
        layers = zip(k, v, *pasts_of_rows, strict=True)
        return [cls(k_KSH, v_KSH, batch, masks, tuple(pasts)) for k_KSH, v_KSH, *pasts in layers]

    def attend(self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        """Store the new keys and values, then let each row attend; returns y_TNH."""
        self.k_KSH.index_copy_(1, self.batch.slots_T, k_TKH.transpose(0, 1))
        self.v_KSH.index_copy_(1, self.batch.slots_T, v_TKH.transpose(0, 1))
        q_TKGH = q_TNH.view(len(q_TNH), k_TKH.shape[1], -1, q_TNH.shape[-1])
        rows = zip(self.batch.rows, self.pasts, self.masks, strict=True)
        y = [_attend(q_TKGH[row.start : row.stop], past, mask) for row, past, mask in rows]
        return torch.cat(y).flatten(1, 2)


def _attend(q_UKGH: Tensor, past: _Past, mask_UL: Tensor | None) -> Tensor:
    k_1KLH, v_1KLH = past.read()
    if q_UKGH.shape[0] == 1:
        return F.scaled_dot_product_attention(q_UKGH, k_1KLH, v_1KLH)
    q_NUH = q_UKGH.flatten(1, 2).transpose(0, 1)
    y_1NUH = F.scaled_dot_product_attention(
        q_NUH[None], k_1KLH, v_1KLH, attn_mask=mask_UL, is_causal=mask_UL is None, enable_gqa=True
    )
    return y_1NUH[0].transpose(0, 1).view(q_UKGH.shape)
