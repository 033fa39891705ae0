"""The control plane in this process, for tests: a scheduler or an evictor on a bus of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from cortex_evictor.service import evictor
from cortex_kit.bus import Bus
from cortex_kit.kv import Kv
from cortex_kit.service import Context
from cortex_kit.settings import Eviction, Scheduler, Settings
from cortex_kit.telemetry import Telemetry
from cortex_proto import subjects
from cortex_proto.catalogue import Model
from cortex_proto.ids import ModelId
from cortex_proto.placement import AskStatus, Ensure, EnsureReply, FleetStatus, Pending, Placed
from cortex_scheduler.service import scheduler

ASK_S = 5.0


@asynccontextmanager
async def scheduling(bus: Bus, folder: Path, *models: Model, aliases: str = "") -> AsyncIterator[Telemetry]:
    """Run a scheduler with these models."""
    (folder / "models.toml").write_text("".join(map(_toml, models)) + f"[aliases]\n{aliases}\n")
    settings = Settings(scheduler=Scheduler(), eviction=Eviction(min_residence_s=0.0))
    telemetry = Telemetry(bus)
    async with scheduler(Context(settings, bus, Kv(bus), telemetry, folder)):
        yield telemetry


@asynccontextmanager
async def evicting(bus: Bus) -> AsyncIterator[None]:
    """Run an evictor."""
    async with evictor(Context(Settings(), bus, Kv(bus), Telemetry(bus), Path())):
        yield


async def ensure(bus: Bus, model: Model | str) -> EnsureReply:
    """Ask once for a model."""
    name = model if isinstance(model, str) else model.id
    reply: EnsureReply = await bus.ask(subjects.ENSURE, Ensure(ModelId(name)), timeout_s=ASK_S)
    return reply


async def ensure_placed(bus: Bus, model: Model) -> Placed:
    """Ask again and again, as a gateway does, until the model is placed."""
    async with asyncio.timeout(ASK_S):
        while isinstance(reply := await ensure(bus, model), Pending):
            pass
    return reply


async def status(bus: Bus) -> FleetStatus:
    """Ask how things stand."""
    reply: FleetStatus = await bus.ask(subjects.STATUS, AskStatus(), timeout_s=ASK_S)
    return reply


def _toml(model: Model) -> str:
    fields = msgspec.to_builtins(model)
    lines = [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in fields.items()]
    return "[[models]]\n" + "\n".join(lines) + "\n"
