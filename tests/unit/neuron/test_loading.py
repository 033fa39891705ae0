"""How a model is spread over the devices that it was assigned to."""

from pathlib import Path
from typing import Any

import pytest

from builders.checkpoints import write_llama
from cortex_kit import settings
from cortex_neuron import loading
from cortex_neuron.hardware import DeviceFacts, Hardware
from cortex_proto.catalogue import MIB, Model
from cortex_proto.errors import LoadFailedError
from cortex_proto.ids import ModelId
from cortex_proto.placement import Assignment

GPUS = Hardware(
    "host", "Linux", "6", "550", tuple(DeviceFacts(i, "cuda", "gpu", 2**34, 2**34) for i in range(4))
)


def planned(path: Path, devices: tuple[int, ...], **fields: Any) -> loading.Plan:
    model = Model(ModelId("m"), source=str(path), **fields)
    return loading.plan(Assignment(model, devices, "test"), settings.Neuron(), GPUS, path)


def test_a_model_on_two_devices_needs_about_half_of_each(tmp_path: Path) -> None:
    path = write_llama(tmp_path, vocab_size=20_000)

    one, two = planned(path, (1,), vram_mb=100), planned(path, (3, 1), vram_mb=100)

    assert [device.label for device in two.devices] == ["cuda:1", "cuda:3"]
    assert two.need.kv_page_bytes * 2 == one.need.kv_page_bytes
    assert (one.need.declared_bytes, two.need.declared_bytes) == (100 * MIB, 50 * MIB)
    assert two.need.fixed_bytes < one.need.fixed_bytes


@pytest.mark.parametrize(
    ("devices", "min_devices", "because"),
    [
        ((0,), 2, r"asks for 2 devices, and was assigned to \[0\]"),
        ((0, 7), 2, r"assigned to devices \[0, 7\], but this node has cuda:0, cuda:1, cuda:2, cuda:3"),
        ((), 1, r"asks for 1 devices, and was assigned to \[\]"),
        ((0, 1, 2), 1, "4 query heads cannot be shared by 3 ranks"),
    ],
)
def test_devices_that_cannot_share_the_model_are_refused_with_the_reason(
    tmp_path: Path, devices: tuple[int, ...], min_devices: int, because: str
) -> None:
    path = write_llama(tmp_path)

    with pytest.raises(LoadFailedError, match=because):
        planned(path, devices, min_devices=min_devices)
