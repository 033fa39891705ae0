"""A packed matrix multiplies as the plain one does, and is not insisted on."""

from pathlib import Path

import pytest
import torch

from builders.checkpoints import write_llama
from builders.models import load_quietly, logits_at_each
from cortex_neuron.model import matmul
from cortex_neuron.model.matmul import Packed, Plain, can_pack

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_rows", [1, 8, 33])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_equals_plain(dtype: torch.dtype, num_rows: int, *, bias: bool) -> None:
    assert can_pack(dtype, CPU)
    weight = torch.randn(70, 48).to(dtype)
    addend = torch.randn(70).to(dtype) if bias else None
    x = torch.randn(num_rows, 48).to(dtype)

    y = Packed(weight, addend)(x)

    torch.testing.assert_close(y, Plain(weight, addend)(x), atol=1e-5, rtol=1e-2)


def test_only_the_cpu_packs() -> None:
    assert not can_pack(torch.float32, torch.device("meta"))


def test_what_onednn_cannot_multiply_is_left_plain() -> None:
    assert not can_pack(torch.float64, CPU)


def test_a_torch_without_the_private_operations_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_llama(tmp_path)
    packed = logits_at_each(load_quietly(path), [1, 2, 3])

    class Gone:
        def __init__(self, *_: object) -> None:
            raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    monkeypatch.setattr(matmul, "Packed", Gone)
    plain = load_quietly(path)

    assert all(isinstance(linear.form, Plain) for linear in plain.linears())
    torch.testing.assert_close(logits_at_each(plain, [1, 2, 3]), packed, atol=2e-5, rtol=0)
