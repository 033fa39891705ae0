"""Weights as GGUF files hold them: quantised where the package can, else blocks of chance."""

from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

_Q = GGMLQuantizationType
# Of the kinds that the package only reads: where the 16-bit scales of a block are, and values for
# them that give weights around 0 of the usual size.
_SCALES: dict[GGMLQuantizationType, dict[int, float]] = {
    _Q.Q4_K: {0: 3e-4, 2: 7.5 * 3e-4},
    _Q.Q5_K: {0: 1.5e-4, 2: 15.5 * 1.5e-4},
    _Q.Q6_K: {208: 6e-5},
}


def gguf_blocks(values: NDArray[Any], kind: GGMLQuantizationType) -> NDArray[Any]:
    """Quantise `values` row by row; for K-quants draw the rows instead, the same for the same values.

    Source: block_q4_K, block_q5_K, block_q6_K in ggml's ggml-common.h.
    """
    if kind not in _SCALES:
        return np.asarray(quants.quantize(values, kind))
    width, block_bytes = GGML_QUANT_SIZES[kind]
    seed = abs(int(1e6 * float(values.sum(dtype=np.float64))))
    num_blocks = values.size // width
    drawn = np.random.default_rng(seed).integers(256, size=(num_blocks, block_bytes), dtype=np.uint8)
    for at, scale in _SCALES[kind].items():
        drawn[:, at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), dtype=np.uint8)
    return drawn.reshape(values.shape[0], -1)
