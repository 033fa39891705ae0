"""The neuron: hears what should run here, makes it so, serves it, and says how it stands."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from typing import Any

import structlog

from cortex_kit import http
from cortex_kit.bus import Subscription
from cortex_kit.service import Context
from cortex_kit.tasks import end
from cortex_neuron import hardware, health, report
from cortex_neuron.convergence import Convergence, Site
from cortex_neuron.hardware import Hardware, Reading
from cortex_neuron.outbox import Outbox
from cortex_neuron.serving import Serving
from cortex_neuron.streams import Limits
from cortex_proto import subjects, telemetry
from cortex_proto.errors import BusError, CortexError
from cortex_proto.fleet import LOAD_PERIOD_S, NODE_PERIOD_S, Node, Replica
from cortex_proto.generation import ControlMessage, Generate
from cortex_proto.ids import ModelId, NodeId, node_id
from cortex_proto.placement import Desired

log = structlog.get_logger()

DESIRED_PERIOD_S = 10.0
"""The desired document is read again so often, in case its announcement was lost."""
DESIRED_RETRY_S = 1.0
REAP_PERIOD_S = 0.5
LEAST_GAP_S = 0.1
"""Between two reports, however much changes."""
READING_PERIOD_S = 5.0
DRAIN_LIMIT_S = 5.0
"""When told to stop, requests under way may go on for so long."""
FLUSH_LIMIT_S = 2.0


class Neuron:
    """One node. `running` is its life."""

    def __init__(self, context: Context, machine: Hardware, limits: Limits) -> None:
        options = context.settings.neuron
        self.id: NodeId = node_id(options.name or machine.hostname)
        self._bus, self._kv, self._telemetry = context.bus, context.kv, context.telemetry
        self._identity = report.Identity(self.id, context.bus.instance, version("cortex"), machine)
        self._began_s = time.monotonic()
        self._loads_changed, self._node_changed = asyncio.Event(), asyncio.Event()
        self._idle = asyncio.Event()
        self._reread = asyncio.Event()
        self._outbox = Outbox(context.bus, self.id)
        self._serving = Serving(
            self.id, self._outbox.put, clock=time.monotonic, on_idle=self._note_idle, limits=limits
        )
        self._convergence = Convergence(
            Site(self.id, machine, options, context.config_dir),
            self._serving,
            context.bus,
            context.telemetry,
            self._note_change,
        )
        self._gauged: frozenset[ModelId] = frozenset()

    def node(self) -> Node:
        """Describe this node as it is now."""
        residents, ledger = self._convergence.residents, self._convergence.ledger
        return report.node(self._identity, ledger, self._replicas(), residents.epoch)

    def view(self) -> health.View:
        """Return what the health pages show."""
        return health.View(
            node=self.node,
            readings=_cached(self._identity.hardware),
            uptime_s=lambda: time.monotonic() - self._began_s,
            driver_version=self._identity.hardware.driver_version,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Live; leaving finishes what can be finished soon, and unloads everything."""
        async with asyncio.TaskGroup() as group:
            converging = group.create_task(self._convergence.converge_for_ever())
            loops: tuple[Callable[[], Any], ...] = (
                self._outbox.send_for_ever,
                self._reap_for_ever,
                self._report_loads_for_ever,
                self._report_node_for_ever,
                self._read_desired_for_ever,
            )
            tasks = [group.create_task(loop()) for loop in loops]
            subscriptions = await self._subscribe()
            try:
                yield
            finally:
                await self._drain(converging)
                for subscription in subscriptions:
                    await subscription.stop()
                await end(*tasks)
                with contextlib.suppress(BusError):
                    await self._kv.delete(subjects.node(self.id))

    async def _subscribe(self) -> tuple[Subscription, ...]:
        async def request(message: Generate, _: str) -> None:
            self._serving.request(message)

        async def control(message: ControlMessage, _: str) -> None:
            self._serving.control(message)

        async def desired(message: Desired, _: str) -> None:
            self._convergence.want(message)

        async def reread() -> None:
            self._reread.set()

        self._bus.on_reconnect(reread)
        return (
            await self._bus.hear(subjects.requests_of(self.id), request),
            await self._bus.hear(subjects.control(self.id, subjects.ANY), control),
            await self._bus.hear(subjects.desired_changed(self.id), desired),
        )

    async def _drain(self, converging: "asyncio.Task[None]") -> None:
        """Let requests under way end, unload everything, and send what is left to send."""
        self._serving.refuse_new()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_LIMIT_S):
                while self._serving.num_live:
                    self._idle.clear()
                    await self._idle.wait()
        await end(converging)
        await self._serving.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_LIMIT_S):
                await self._outbox.flushed()

    def _note_change(self) -> None:
        self._loads_changed.set()
        self._node_changed.set()

    def _note_idle(self) -> None:
        """A model has no requests any more: that may let it leave."""
        self._loads_changed.set()
        self._idle.set()
        self._convergence.wake()

    def _replicas(self) -> tuple[Replica, ...]:
        residents = self._convergence.residents
        loads = {model: load for model in residents.residents if (load := self._serving.load(model))}
        return report.replicas(self.id, residents, self._convergence.ledger, loads, time.monotonic())

    async def _reap_for_ever(self) -> None:
        while True:
            await asyncio.sleep(REAP_PERIOD_S)
            self._serving.reap()

    async def _report_loads_for_ever(self) -> None:
        while True:
            self._loads_changed.clear()
            replicas = self._replicas()
            self._set_gauges(replicas)
            with contextlib.suppress(CortexError):  # the next report is soon
                for replica in replicas:
                    await self._bus.publish(subjects.load(replica.model, self.id), replica)
            await _pause(self._loads_changed, LOAD_PERIOD_S)

    async def _report_node_for_ever(self) -> None:
        while True:
            self._node_changed.clear()
            try:
                await self._kv.put(subjects.node(self.id), self.node())
            except CortexError as error:
                log.debug("node_not_reported", because=str(error))
            await _pause(self._node_changed, NODE_PERIOD_S)

    async def _read_desired_for_ever(self) -> None:
        while True:
            self._reread.clear()
            period_s = DESIRED_PERIOD_S
            try:
                if entry := await self._kv.get(subjects.desired(self.id)):
                    self._convergence.want(entry.value)
            except BusError as error:
                log.debug("desired_not_read", because=str(error))
                period_s = DESIRED_RETRY_S
            await _pause(self._reread, period_s)

    def _set_gauges(self, replicas: tuple[Replica, ...]) -> None:
        node = self.id
        for replica in replicas:
            load = self._serving.load(replica.model)
            self._telemetry.gauge(
                telemetry.RUNNING, load.running if load else 0, model=replica.model, node=node
            )
            self._telemetry.gauge(
                telemetry.WAITING, load.waiting if load else 0, model=replica.model, node=node
            )
            self._telemetry.gauge(telemetry.MODEL_BYTES, replica.bytes, model=replica.model, node=node)
        present = frozenset(replica.model for replica in replicas)
        for model in self._gauged - present:
            for metric in (telemetry.RUNNING, telemetry.WAITING, telemetry.MODEL_BYTES):
                self._telemetry.forget(metric, model=model, node=node)
        self._gauged = present
        ledger = self._convergence.ledger
        for device in self._identity.hardware.devices:
            total, free = ledger.total_bytes(device.index), ledger.free_bytes(device.index)
            self._telemetry.gauge(telemetry.DEVICE_TOTAL_BYTES, total, node=node, device=device.label)
            self._telemetry.gauge(telemetry.DEVICE_FREE_BYTES, free, node=node, device=device.label)


@contextlib.asynccontextmanager
async def run(context: Context, limits: Limits = Limits()) -> AsyncIterator[None]:  # noqa: B008
    """Be a neuron while entered; `limits` is for tests."""
    options = context.settings.neuron
    machine = await asyncio.to_thread(hardware.discover, options)
    neuron = Neuron(context, machine, limits)
    devices = [f"{device.label} {device.name}" for device in machine.devices]
    async with http.serving(health.app(neuron.view()), options.listen) as port, neuron.running():
        log.info("neuron_started", node=neuron.id, devices=devices, http_port=port)
        yield


async def _pause(changed: asyncio.Event, period_s: float) -> None:
    """Wait for a change, but not longer than `period_s`, and at least LEAST_GAP_S."""
    await asyncio.sleep(LEAST_GAP_S)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(period_s - LEAST_GAP_S):
            await changed.wait()


def _cached(machine: Hardware) -> Callable[[], Any]:
    """Return a reader of the devices that asks them at most once in READING_PERIOD_S."""
    last: tuple[float, tuple[Reading, ...]] | None = None

    async def readings() -> tuple[Reading, ...]:
        nonlocal last
        if last is None or time.monotonic() - last[0] > READING_PERIOD_S:
            fresh = await asyncio.to_thread(hardware.read, machine)
            last = (time.monotonic(), fresh or (last[1] if last else ()))
        return last[1]

    return readings
