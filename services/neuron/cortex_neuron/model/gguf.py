"""Weights from a GGUF file, dequantised one tensor at a time as they are asked for."""

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from torch import Tensor

from cortex_neuron.model import gguf_header
from cortex_neuron.model.gguf_header import TensorAt
from cortex_proto.errors import LoadFailedError

_PERMUTING = frozenset({"llama"})
"""Architectures whose converter reorders the rows of q and k."""


class GgufFile:
    """The weights of one GGUF file; the file is mapped, and read as the tensors are."""

    def __init__(self, path: Path) -> None:
        self.header = gguf_header.read(path)
        self.shapes = gguf_header.as_shapes(self.header)
        config = gguf_header.as_config(self.header)
        self.num_heads: int = config["num_attention_heads"]
        self.num_kv_heads: int = config.get("num_key_value_heads", self.num_heads)
        self._check_length()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Give each tensor once, in file order, whole and as float32."""
        # Mode c: what is stored as float32 is handed out as it lies, and torch wants it writable.
        mapped = np.memmap(self.header.path, mode="c")
        in_file_order = sorted(self.header.tensors.items(), key=lambda item: item[1].offset)
        for gguf_name, at in in_file_order:
            name = gguf_header.hf_name(gguf_name)
            yield name, self._in_hf_order(name, self._dequantised(mapped, gguf_name, at))

    def _check_length(self) -> None:
        num_bytes = self.header.path.stat().st_size
        for name, at in sorted(self.header.tensors.items(), key=lambda item: item[1].offset):
            if at.offset + prod(self._stored_shape(name, at)) > num_bytes:
                raise self._unreadable(name, "the file ends before its end")

    def _dequantised(self, mapped: NDArray[np.uint8], name: str, at: TensorAt) -> Tensor:
        stored = self._stored_shape(name, at)
        raw = mapped[at.offset : at.offset + prod(stored)].reshape(stored)
        try:
            return torch.from_numpy(dequantize(raw, GGMLQuantizationType(at.type)))
        except NotImplementedError as error:
            raise self._unreadable(name, error) from error

    def _stored_shape(self, name: str, at: TensorAt) -> tuple[int, ...]:
        """Give the shape of the bytes as they lie in the file."""
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(at.type)]
        except ValueError as error:
            raise self._unreadable(name, error) from error
        *rows, width = at.shape
        return (*rows, width // block * block_bytes)

    def _unreadable(self, name: str, because: object) -> LoadFailedError:
        return LoadFailedError(f"{self.header.path}: cannot read tensor {name}: {because}")

    def _in_hf_order(self, name: str, tensor: Tensor) -> Tensor:
        """Undo the converter's reordering, by which a rotation turns neighbours instead of halves.

        Source: `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py.
        """
        if self.header.architecture not in _PERMUTING:
            return tensor
        if ".q_proj." in name:
            return _halves(tensor, self.num_heads)
        if ".k_proj." in name:
            return _halves(tensor, self.num_kv_heads)
        return tensor


def _halves(tensor: Tensor, num_heads: int) -> Tensor:
    return tensor.view(num_heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).flatten(0, 2)
