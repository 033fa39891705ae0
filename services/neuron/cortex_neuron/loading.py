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
from cortex_neuron import files, hub
from cortex_neuron.engine.cluster import Cluster, OnEvents, OnProgress
from cortex_neuron.engine.messages import LoadOptions
from cortex_neuron.files import Weights
from cortex_neuron.hardware import DeviceFacts, Hardware
from cortex_neuron.memory import Need
from cortex_neuron.model.spec import PAGE, Step, check_world, footprint, kv_page_bytes, read_spec
from cortex_neuron.replica import Replica
from cortex_neuron.residents import DOWNLOADING
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
    devices: tuple[DeviceFacts, ...]
    """One rank runs on each."""
    dtype: str
    need: Need
    """Of each device."""


async def plan(
    assignment: Assignment,
    options: settings.Neuron,
    hardware: Hardware,
    base: Path,
    on_progress: OnProgress,
) -> Plan:
    """Find the files of a model, or download them, and work out what it needs.

    Raises:
        LoadFailedError: there are no such files, or the engine cannot run them here.
    """
    devices = _devices(assignment, hardware)
    weights = await _find(assignment.model, base, on_progress)
    on_progress("reading headers", 0.0)
    return await asyncio.to_thread(_plan, assignment.model, weights, devices, options)


async def _find(model: Model, base: Path, on_progress: OnProgress) -> Weights:
    place = await asyncio.to_thread(files.locate, model, base)
    if isinstance(place, Weights):
        return place
    path = await hub.download(place, lambda fraction: on_progress(DOWNLOADING, fraction))
    return Weights(path, place.dtype)


def _plan(model: Model, weights: Weights, devices: tuple[DeviceFacts, ...], options: settings.Neuron) -> Plan:
    kind, world = devices[0].kind, len(devices)
    spec = read_spec(weights.path)
    check_world(spec, world)
    dtype = weights.dtype or _default_dtype(options, devices[0])
    page_bytes = kv_page_bytes(spec, dtype, world)
    step = Step(options.max_batch, options.prefill_tokens)
    least_pages = -(-min(LEAST_TOKENS, spec.context) // PAGE)
    most_pages = max(least_pages, options.kv_cache_mb * MIB // page_bytes)
    need = Need(
        fixed_bytes=footprint(spec, dtype, step, kind, world).total_bytes,
        least_kv_bytes=least_pages * page_bytes,
        most_kv_bytes=most_pages * page_bytes,
        kv_page_bytes=page_bytes,
        declared_bytes=-(-model.declared_bytes // world),
    )
    return Plan(model, weights.path, devices, dtype, need)


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
            _engine_options(plan, kv_bytes, options),
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


def measured_bytes(cluster: Cluster) -> int:
    """Add up the main memory that the ranks of `cluster` have to themselves; 0 for those that are gone."""
    return sum(_private_bytes(pid) for pid in cluster.pids)


def _engine_options(plan: Plan, kv_bytes: int, options: settings.Neuron) -> LoadOptions:
    return LoadOptions(
        path=plan.path,
        devices=tuple(device.torch_device for device in plan.devices),
        dtype=plan.dtype,
        kv_bytes=kv_bytes,
        max_batch=options.max_batch,
        max_waiting=options.max_waiting,
        prefill_tokens=options.prefill_tokens,
        threads=options.threads or max(1, _num_cores() // len(plan.devices)),
        tokenizer=conversion.place(plan.path, conversion.cache_dir()) / "tokenizer.json",
    )


async def _text(path: Path) -> tokenizer.TextCodec:
    directory = await conversion.tokenizer_dir(path, conversion.cache_dir())
    return await asyncio.to_thread(tokenizer.load, directory, path)


def _private_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return 0


def _devices(assignment: Assignment, hardware: Hardware) -> tuple[DeviceFacts, ...]:
    model, indices = assignment.model, assignment.devices
    if len(indices) < model.min_devices:
        raise LoadFailedError(
            f"model {model.id!r} asks for {model.min_devices} devices, and was assigned to {list(indices)}"
        )
    found = tuple(device for device in hardware.devices if device.index in indices)
    if len(found) < len(indices):
        present = ", ".join(d.label for d in hardware.devices)
        raise LoadFailedError(f"assigned to devices {list(indices)}, but this node has {present}")
    return found


def _default_dtype(options: settings.Neuron, device: DeviceFacts) -> str:
    if options.dtype != "auto":
        return options.dtype
    return "float32" if device.kind == "cpu" else "bfloat16"


def _num_cores() -> int:
    """Count the physical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))
