"""What this machine has: GPUs, as nvidia-smi lists them, the CPU, main memory, the operating system.

Torch is not asked: it would take a GPU context, memory and seconds, in a process that needs none.
"""

import platform
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from cortex_kit.settings import Neuron, SettingsError
from cortex_proto.catalogue import MIB

NVIDIA_SMI_LIMIT_S = 10.0
_GPU_SHARE = 0.9
_CPU_SHARE = 0.8
_FACTS = ("index", "name", "memory.total", "compute_cap", "driver_version")
_READINGS = ("index", "memory.used", "memory.free", "utilization.gpu", "temperature.gpu")

Query = Callable[[Iterable[str]], str]
"""Asks nvidia-smi for columns; the answer is CSV without a header."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One GPU, or the CPU with its main memory."""

    index: int
    kind: Literal["cpu", "cuda"]
    name: str
    memory_bytes: int
    """All that it has."""
    usable_bytes: int
    """What cortex may use of it."""
    compute_capability: str | None = None

    @property
    def label(self) -> str:
        """How people call it: "cuda:0", "cpu:0"."""
        return f"{self.kind}:{self.index}"

    @property
    def torch_device(self) -> str:
        """How the engine calls it: there is one CPU, but many GPUs."""
        return "cpu" if self.kind == "cpu" else self.label


@dataclass(frozen=True, slots=True)
class Hardware:
    """This machine."""

    hostname: str
    os: str
    kernel: str
    driver_version: str | None
    devices: tuple[DeviceFacts, ...]

    def device(self, index: int) -> DeviceFacts | None:
        """Find a device by its index."""
        return next((d for d in self.devices if d.index == index), None)


@dataclass(frozen=True, slots=True)
class Reading:
    """A device's state at one moment, as the device itself says."""

    index: int
    used_bytes: int
    free_bytes: int
    utilization_pct: float | None = None
    temperature_c: float | None = None


def nvidia_smi(columns: Iterable[str]) -> str:
    """Ask nvidia-smi; no answer if it is absent or does not work."""
    command = ["nvidia-smi", f"--query-gpu={','.join(columns)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_LIMIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def discover(settings: Neuron, query: Query = nvidia_smi) -> Hardware:
    """Look at this machine; blocks for the length of one nvidia-smi.

    Raises:
        SettingsError: `devices = "cuda"`, but there is no GPU.
    """
    rows = [] if settings.devices == "cpu" else _rows(query(_FACTS), len(_FACTS))
    if settings.devices == "cuda" and not rows:
        raise SettingsError('`neuron.devices` is "cuda", but nvidia-smi shows no GPU')
    gpus = tuple(_gpu(row, settings.memory_limit_mb) for row in rows)
    system = platform.uname()
    return Hardware(
        hostname=system.node,
        os=system.system,
        kernel=system.release,
        driver_version=rows[0][4] if rows else None,
        devices=gpus or (_cpu(settings.memory_limit_mb),),
    )


def read(hardware: Hardware, query: Query = nvidia_smi) -> tuple[Reading, ...]:
    """Read what the devices say of themselves now; blocks for the length of one nvidia-smi."""
    if all(device.kind == "cpu" for device in hardware.devices):
        memory = psutil.virtual_memory()
        used = memory.total - memory.available
        return (Reading(0, used, memory.available, utilization_pct=psutil.cpu_percent()),)
    return tuple(_reading(row) for row in _rows(query(_READINGS), len(_READINGS)))


def _rows(csv: str, width: int) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split(",")] for line in csv.splitlines()]
    return [row for row in rows if len(row) == width and row[0].isdigit() and _number(row[2]) is not None]


def _gpu(row: list[str], limit_mb: int | None) -> DeviceFacts:
    index, name, memory_mib, capability, _ = row
    memory_bytes = int(float(memory_mib)) * MIB
    usable = _usable(memory_bytes, limit_mb, _GPU_SHARE)
    return DeviceFacts(int(index), "cuda", name, memory_bytes, usable, capability)


def _cpu(limit_mb: int | None) -> DeviceFacts:
    memory_bytes = min(psutil.virtual_memory().total, _cgroup_limit_bytes())
    return DeviceFacts(0, "cpu", _cpu_name(), memory_bytes, _usable(memory_bytes, limit_mb, _CPU_SHARE))


def _cpu_name(file: Path = Path("/proc/cpuinfo")) -> str:
    """Return what the maker calls it; where the system does not say, the architecture."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _usable(memory_bytes: int, limit_mb: int | None, share: float) -> int:
    return int(memory_bytes * share) if limit_mb is None else min(limit_mb * MIB, memory_bytes)


def _cgroup_limit_bytes(file: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Return the memory limit of this container; without one, more than any machine has."""
    unlimited = 1 << 62
    try:
        text = file.read_text().strip()
    except OSError:
        return unlimited
    return int(text) if text.isdigit() else unlimited


def _reading(row: list[str]) -> Reading:
    used, free, utilization, temperature = (_number(cell) for cell in row[1:])
    return Reading(int(row[0]), int((used or 0) * MIB), int((free or 0) * MIB), utilization, temperature)


def _number(cell: str) -> float | None:
    """Read a number; nvidia-smi writes "[N/A]" for what a card does not tell."""
    try:
        return float(cell)
    except ValueError:
        return None
