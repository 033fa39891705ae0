"""What this machine has, as nvidia-smi and the operating system tell it."""

import subprocess
import sys
from collections.abc import Iterable

import psutil
import pytest

from cortex_kit.settings import Neuron, SettingsError
from cortex_neuron.hardware import Reading, discover, nvidia_smi, read
from cortex_proto.catalogue import MIB

TWO_GPUS = (
    "0, NVIDIA H100 80GB HBM3, 81559, 9.0, 550.54.15\n1, NVIDIA GeForce RTX 4090, 24564, 8.9, 550.54.15\n"
)
TWO_READINGS = "0, 1024, 80535, 37, 54\n1, 24000, 564, [N/A], [N/A]\n"


def smi(columns: Iterable[str]) -> str:
    return TWO_READINGS if "memory.used" in columns else TWO_GPUS


def nothing(columns: Iterable[str]) -> str:
    return ""


def broken(columns: Iterable[str]) -> str:
    return "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"


def test_gpus_are_listed_with_what_may_be_used_of_them() -> None:
    hardware = discover(Neuron(), smi)

    assert [(d.label, d.name, d.compute_capability) for d in hardware.devices] == [
        ("cuda:0", "NVIDIA H100 80GB HBM3", "9.0"),
        ("cuda:1", "NVIDIA GeForce RTX 4090", "8.9"),
    ]
    assert hardware.devices[1].usable_bytes == int(24564 * MIB * 0.9)
    assert hardware.driver_version == "550.54.15"


@pytest.mark.parametrize("query", [nothing, broken])
def test_without_a_gpu_there_is_the_cpu_with_its_main_memory(query: object) -> None:
    assert callable(query)
    hardware = discover(Neuron(), query)

    (cpu,) = hardware.devices
    assert (cpu.label, cpu.torch_device) == ("cpu:0", "cpu")
    assert 0 < cpu.usable_bytes < cpu.memory_bytes <= psutil.virtual_memory().total


def test_the_cpu_can_be_chosen_though_there_are_gpus() -> None:
    assert [d.kind for d in discover(Neuron(devices="cpu"), smi).devices] == ["cpu"]


def test_asking_for_gpus_where_there_are_none_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="nvidia-smi shows no GPU"):
        discover(Neuron(devices="cuda"), nothing)


@pytest.mark.parametrize(("limit_mb", "usable_mib"), [(1000, 1000), (10**6, 24564)])
def test_a_limit_holds_for_each_device_but_adds_no_memory(limit_mb: int, usable_mib: int) -> None:
    hardware = discover(Neuron(memory_limit_mb=limit_mb), smi)

    assert hardware.devices[1].usable_bytes == usable_mib * MIB


def test_what_a_card_does_not_tell_is_left_open() -> None:
    readings = read(discover(Neuron(), smi), smi)

    assert readings == (
        Reading(0, 1024 * MIB, 80535 * MIB, 37.0, 54.0),
        Reading(1, 24000 * MIB, 564 * MIB, None, None),
    )


def test_the_cpu_is_read_too() -> None:
    (reading,) = read(discover(Neuron(), nothing), nothing)

    assert reading.free_bytes > 0


def test_an_absent_nvidia_smi_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert nvidia_smi(["index"]) == ""


def test_the_neuron_runs_without_torch() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import cortex_neuron.service, sys; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert said.stdout.strip() == "False"
