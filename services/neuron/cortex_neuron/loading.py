"""From an assignment to a loaded model: find the files, see what they need, start the engine."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from cortex_kit import settings
from cortex_neuron import files
from cortex_neuron.engine.cluster import Cluster, OnEvents, OnProgress
from cortex_neuron.engine.messages import LoadOptions
from cortex_neuron.hardware import DeviceFacts, Hardware
from cortex_neuron.memory import Need
from cortex_neuron.model.spec import PAGE, Step, footprint, kv_page_bytes, read_spec
from cortex_neuron.replica import Replica
from cortex_neuron.text import conversion, tokenizer
from cortex_proto.catalogue import MIB, Model
from cortex_proto.errors import LoadFailedError
from cortex_proto.placement import Assignment

LEAST_TOKENS = 2048
"""A model is loaded only with room for the keys and values of so many tokens, or of its whole context."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model would be loaded."""

    model: Model
    path: Path
    device: DeviceFacts
    dtype: str
    need: Need


def plan(assignment: Assignment, options: settings.Neuron, hardware: Hardware, base: Path) -> Plan:
    """Look at the files of a model and work out what it needs. Blocks on the disk.

    Raises:
        LoadFailedError: there are no such files, or the engine cannot run them here.
    """
    model = assignment.model
    device = _device(assignment, hardware)
    weights = files.locate(model, base)
    spec = read_spec(weights.path)
    dtype = weights.dtype or _default_dtype(options, device)
    page_bytes = kv_page_bytes(spec, dtype)
    step = Step(options.max_batch, options.prefill_tokens)
    least_pages = -(-min(LEAST_TOKENS, spec.context) // PAGE)
    most_pages = max(least_pages, options.kv_cache_mb * MIB // page_bytes)
    need = Need(
        fixed_bytes=footprint(spec, dtype, 0, step, device.kind).total_bytes,
        least_kv_bytes=least_pages * page_bytes,
        most_kv_bytes=most_pages * page_bytes,
        kv_page_bytes=page_bytes,
        declared_bytes=model.declared_bytes,
    )
    return Plan(model, weights.path, device, dtype, need)


@asynccontextmanager
async def loaded(
    plan: Plan,
    kv_bytes: int,
    options: settings.Neuron,
    *,
    on_events: OnEvents,
    on_progress: OnProgress,
) -> AsyncIterator[Replica]:
    """Load the engine and the text side together; on leaving, all of it is freed.

    Raises:
        LoadFailedError: it did not load; nothing is left of it.
    """
    text = asyncio.create_task(_text(plan.path))
    try:
        cluster = await Cluster.start(
            _load_options(plan, kv_bytes, options),
            on_events=on_events,
            on_progress=on_progress,
            timeout_s=options.load_timeout_s,
        )
        try:
            context = min(cluster.context, plan.model.limit.context or cluster.context)
            yield Replica(
                plan.model,
                cluster,
                await text,
                context,
                options.max_batch,
                options.max_waiting,
                time.monotonic(),
            )
        finally:
            await cluster.close()
    finally:
        text.cancel()
        await asyncio.gather(text, return_exceptions=True)


def _load_options(plan: Plan, kv_bytes: int, options: settings.Neuron) -> LoadOptions:
    return LoadOptions(
        path=plan.path,
        device=plan.device.torch_device,
        dtype=plan.dtype,
        kv_bytes=kv_bytes,
        max_batch=options.max_batch,
        max_waiting=options.max_waiting,
        prefill_tokens=options.prefill_tokens,
        threads=options.threads or _num_cores(),
        tokenizer=conversion.place(plan.path, conversion.cache_dir()) / "tokenizer.json",
    )


def measured_bytes(cluster: Cluster) -> int:
    """Add up the main memory that the ranks of `cluster` have to themselves; 0 for those that are gone."""
    return sum(_private_bytes(pid) for pid in cluster.pids)


async def _text(path: Path) -> tokenizer.TextCodec:
    directory = await conversion.tokenizer_dir(path, conversion.cache_dir())
    return await asyncio.to_thread(tokenizer.load, directory, path)


def _private_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return 0


def _device(assignment: Assignment, hardware: Hardware) -> DeviceFacts:
    model, indices = assignment.model, assignment.devices
    if model.min_devices > 1 or len(indices) > 1:
        num_devices = max(model.min_devices, len(indices))
        raise LoadFailedError(
            f"model {model.id!r} asks for {num_devices} devices: "
            "running one model on several is not supported yet"
        )
    device = hardware.device(indices[0]) if indices else None
    if device is None:
        present = ", ".join(d.label for d in hardware.devices)
        raise LoadFailedError(f"assigned to devices {list(indices)}, but this node has {present}")
    return device


def _default_dtype(options: settings.Neuron, device: DeviceFacts) -> str:
    if options.dtype != "auto":
        return options.dtype
    return "float32" if device.kind == "cpu" else "bfloat16"


def _num_cores() -> int:
    """Count the physical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))
