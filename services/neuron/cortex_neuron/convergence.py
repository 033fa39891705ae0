"""Makes what is loaded here equal to what the scheduler wants: one task per model, from load to gone."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from cortex_kit import settings
from cortex_kit.bus import Bus, Subscription
from cortex_kit.telemetry import Telemetry, now
from cortex_neuron import loading, memory
from cortex_neuron.hardware import Hardware
from cortex_neuron.memory import Fit, Ledger, Shortage
from cortex_neuron.replica import Replica
from cortex_neuron.residents import Abort, Action, Close, Drain, Load, Residents, Revive
from cortex_neuron.serving import Serving
from cortex_proto import subjects, telemetry
from cortex_proto.errors import CortexError, LoadFailedError, NodeLostError, NoRoomError, UnavailableError
from cortex_proto.fleet import LoadRefused, Unloaded
from cortex_proto.fleet import Replica as ReplicaReport
from cortex_proto.generation import Generate
from cortex_proto.ids import ModelId, NodeId
from cortex_proto.placement import Assignment, Desired

log = structlog.get_logger()

RETRY_CHECK_S = 1.0
"""How often refused loads are looked at again."""


class _ShortageError(NoRoomError):
    """The ledger has no room for a load."""

    def __init__(self, shortage: Shortage) -> None:
        super().__init__(shortage.because)
        self.shortage = shortage


@dataclass(frozen=True, slots=True)
class Site:
    """Where models are loaded: the node, what it has, and what it is allowed."""

    node: NodeId
    hardware: Hardware
    options: settings.Neuron
    base: Path
    """What relative paths of models are relative to."""


class Convergence:
    """The only writer of the residents and of the ledger."""

    def __init__(
        self,
        site: Site,
        serving: Serving,
        bus: Bus,
        telemetry: Telemetry,
        on_change: Callable[[], None],
    ) -> None:
        self.residents = Residents()
        self.ledger = Ledger(
            memory.Room(device.index, device.label, device.usable_bytes) for device in site.hardware.devices
        )
        self._site = site
        self._serving = serving
        self._bus = bus
        self._telemetry = telemetry
        self._on_change = on_change
        self._awake = asyncio.Event()
        self._moved = asyncio.Event()
        self._lives: dict[ModelId, asyncio.Task[None]] = {}
        self._fallbacks: dict[ModelId, Subscription] = {}

    def want(self, desired: Desired) -> None:
        """Take in the desired document."""
        if self.residents.want(desired):
            self.wake()
        else:
            log.info("desired_ignored", because=f"epoch {desired.epoch} is below {self.residents.epoch}")

    def wake(self) -> None:
        """Something has changed: see what there is to do."""
        self._awake.set()

    async def converge_for_ever(self) -> None:
        """Load and unload as needed; when cancelled, unload everything."""
        async with asyncio.TaskGroup() as lives:
            while True:
                self._awake.clear()
                for action in self.residents.decide(time.monotonic(), self._serving.num_live):
                    await self._do(action, lives)
                    self._on_change()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_CHECK_S):
                        await self._awake.wait()

    async def _do(self, action: Action, lives: asyncio.TaskGroup) -> None:
        model = action.assignment.model.id if isinstance(action, Load) else action.model
        log.info(type(action).__name__.lower(), model=model, because=action.because)
        match action:
            case Load(assignment=assignment):
                self._lives[model] = lives.create_task(self._live(assignment))
            case Abort() | Close():
                self._lives[model].cancel()
            case Drain():
                self._serving.close(model)
                await self._stop_fallback(model)
            case Revive():
                self._serving.reopen(model)
                await self._hear_fallback(model)
                self._moved.set()

    async def _live(self, assignment: Assignment) -> None:
        """Load a model, let it serve until its engine dies or this task is cancelled, and free it all."""
        model = assignment.model.id
        error: CortexError = UnavailableError(f"model {model!r} is being unloaded")
        began_s = time.monotonic()
        was_loaded = False
        try:
            plan, fit = await self._admit(assignment)
            async with self._loaded(plan, fit) as replica:
                await self._settle(plan, replica, began_s)
                was_loaded = True
                because = await replica.cluster.died
                log.warning("engine_died", model=model, because=because)
                error = NodeLostError(f"the engine of {model!r} died: {because}")
                self.residents.died(model, because, time.monotonic())
                self._serving.remove(model, error)
        except (CortexError, OSError) as failure:
            await self._refused(model, failure)
        except Exception as failure:
            log.exception("load_crashed", model=model)
            await self._refused(model, LoadFailedError(f"internal error: {type(failure).__name__}"))
        finally:
            self._serving.remove(model, error)
            await self._gone(model, was_loaded=was_loaded)

    def _loaded(self, plan: loading.Plan, fit: Fit) -> contextlib.AbstractAsyncContextManager[Replica]:
        def progressed(stage: str, progress: float) -> None:
            self.residents.progressed(plan.model.id, stage, progress)
            self._on_change()

        return loading.loaded(
            plan,
            fit.kv_bytes,
            self._site.options,
            on_events=partial(self._serving.take, plan.model.id),
            on_progress=progressed,
        )

    async def _admit(self, assignment: Assignment) -> tuple[loading.Plan, Fit]:
        """Reserve memory for a load, waiting for models that are leaving.

        Raises:
            LoadFailedError: this cannot be loaded here.
            NoRoomError: there is no room, and none will come by itself.
        """
        site, model = self._site, assignment.model.id
        plan = await asyncio.to_thread(loading.plan, assignment, site.options, site.hardware, site.base)
        devices = [device.index for device in plan.devices]
        while True:
            self._moved.clear()
            fit = memory.fit(plan.need, min(map(self.ledger.free_bytes, devices)))
            shortage = self.ledger.reserve(model, devices, fit.total_bytes)
            if shortage is None:
                log.info("reserved", model=model, bytes=fit.total_bytes, because=fit.because)
                return plan, fit
            if not self.residents.is_leaving():
                raise _ShortageError(shortage)
            self.residents.progressed(model, "waiting for room", 0.0)
            await self._moved.wait()

    async def _settle(self, plan: loading.Plan, replica: Replica, began_s: float) -> None:
        """A load has succeeded: count what it took, and serve."""
        model, node, device = plan.model.id, self._site.node, plan.devices[0]
        if device.kind == "cpu":
            measured = await asyncio.to_thread(loading.measured_bytes, replica.cluster)
            self.ledger.commit(model, device.index, measured)
        self.residents.loaded(model, time.monotonic())
        self._serving.add(replica)
        await self._hear_fallback(model)
        self._on_change()
        seconds = time.monotonic() - began_s
        size = sum(share.bytes for share in self.ledger.shares(model))
        log.info("model_loaded", model=model, seconds=round(seconds, 3), bytes=size, context=replica.context)
        self._telemetry.count(telemetry.LOADS, model=model, node=node)
        self._telemetry.observe(telemetry.LOAD_S, seconds, model=model, node=node)
        await self._telemetry.event(telemetry.ModelLoaded(model, node, seconds, size, now()))

    async def _refused(self, model: ModelId, error: Exception) -> None:
        """A load has failed: remember why, and tell it."""
        node, because = self._site.node, str(error)
        state = LoadRefused(because)
        if isinstance(error, _ShortageError):
            state = LoadRefused(because, error.shortage.need_bytes, error.shortage.free_bytes)
        log.warning("load_refused", model=model, because=because)
        self.residents.refused(model, state, time.monotonic())
        self._telemetry.count(telemetry.LOAD_FAILURES, model=model, node=node)
        await self._telemetry.event(telemetry.LoadFailed(model, node, because, now()))

    async def _gone(self, model: ModelId, *, was_loaded: bool) -> None:
        """Nothing of a model is left: its memory is free, which may let others in."""
        node = self._site.node
        await self._stop_fallback(model)
        freed_bytes = sum(share.bytes for share in self.ledger.shares(model))
        self.ledger.release(model)
        self.residents.closed(model, time.monotonic(), freed_bytes=freed_bytes)
        del self._lives[model]
        self._moved.set()
        self.wake()
        self._on_change()
        if not self.residents.is_wanted(model):
            report = ReplicaReport(model, node, Unloaded())
            with contextlib.suppress(CortexError):  # it is advice, and only a hint behind our next report
                await self._bus.publish(subjects.load(model, node), report)
        if was_loaded:
            log.info("model_unloaded", model=model)
            self._telemetry.count(telemetry.UNLOADS, model=model, node=node)
            await self._telemetry.event(telemetry.ModelUnloaded(model, node, now()))

    async def _hear_fallback(self, model: ModelId) -> None:
        """Answer requests for `model` that name no node."""

        async def hear(generate: Generate, _: str) -> None:
            self._serving.request(generate)

        topic = subjects.request_any(model)
        self._fallbacks[model] = await self._bus.hear(topic, hear, queue=subjects.NEURONS)

    async def _stop_fallback(self, model: ModelId) -> None:
        if subscription := self._fallbacks.pop(model, None):
            await subscription.stop()
