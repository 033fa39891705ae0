"""A scripted node: it reports devices, hears what it should hold, and loads or refuses as it is told."""

import asyncio
from collections.abc import Callable, Mapping

from cortex_kit.bus import Bus, Subscription
from cortex_kit.kv import Kv
from cortex_proto import subjects
from cortex_proto.catalogue import MIB, Model
from cortex_proto.fleet import Device, LoadRefused, Node, Ready, Replica, ReplicaState, Share, Unloaded
from cortex_proto.ids import InstanceId, ModelId, NodeId
from cortex_proto.placement import Desired

WAIT_S = 10.0
IDLE = Ready(running=0, waiting=0, max_waiting=128, idle_s=100.0, context=2048)
BUSY = Ready(running=1, waiting=0, max_waiting=128, idle_s=0.0, context=2048)


class ScriptedNode:
    """One device of `total_mib`; a model takes its size in `sizes_mib`, or is refused as `refusals` says.

    It keeps the rules of a real neuron: it converges to the newest document, frees before it loads, ignores a
    lower epoch, keeps a refusal while the model is wanted, and reports every change at once.
    """

    def __init__(
        self,
        bus: Bus,
        name: NodeId,
        *,
        total_mib: int = 1000,
        sizes_mib: Mapping[str, int] | None = None,
        refusals: Mapping[str, LoadRefused] | None = None,
    ) -> None:
        self.id = name
        self.heard: list[Desired] = []
        """Every document, in order."""
        self.loads: list[ModelId] = []
        """Every load begun, in order."""
        self.epoch = 0
        self._bus = bus
        self._kv = Kv(bus)
        self._total_mib = total_mib
        self._sizes_mib = sizes_mib or {}
        self._refusals = refusals or {}
        self._states: dict[ModelId, ReplicaState] = {}
        self._wanted: tuple[Model, ...] = ()
        self._settled = asyncio.Condition()
        self._hearing: Subscription | None = None
        self._has_left = False

    async def start(self) -> "ScriptedNode":
        """Hear, read, report."""
        self._hearing = await self._bus.hear(subjects.desired_changed(self.id), self._on_desired)
        await self._bus.barrier()
        if entry := await self._kv.get(subjects.desired(self.id)):
            await self._on_desired(entry.value, "")
        await self.report()
        return self

    async def report(self) -> None:
        """Say how everything stands."""
        if not self._has_left:
            await self._kv.put(subjects.node(self.id), self.node())

    async def leave(self) -> None:
        """Say goodbye, and hear no more."""
        self._has_left = True
        await self.go_deaf()
        await self._kv.delete(subjects.node(self.id))

    async def go_deaf(self) -> None:
        """Hear no more of what it should hold."""
        assert self._hearing is not None
        await self._hearing.stop()

    async def become(self, model: ModelId, state: ReplicaState) -> None:
        """Let a replica stand like this; what was wanted meanwhile may now be possible."""
        async with self._settled:
            await self._set(model, state)
            await self._converge()
            self._settled.notify_all()

    async def until(self, holds: Callable[["ScriptedNode"], bool]) -> None:
        """Wait until something holds of this node, and it has nothing more to do."""
        async with asyncio.timeout(WAIT_S), self._settled:
            await self._settled.wait_for(lambda: holds(self))

    def ready(self) -> list[ModelId]:
        """Return what is loaded."""
        return [m for m, s in self._states.items() if isinstance(s, Ready)]

    def wanted(self) -> list[ModelId]:
        """Return what should be loaded."""
        return [m.id for m in self._wanted]

    def node(self) -> Node:
        """Return what it says of itself."""
        replicas = tuple(self._replica(m, s) for m, s in self._states.items())
        total = self._total_mib * MIB
        device = Device(0, "cpu", "scripted", total, total - sum(r.bytes for r in replicas))
        incarnation = InstanceId(f"{self.id}-1")
        return Node(self.id, incarnation, self.id, "linux", "6", "0", (device,), replicas, self.epoch)

    async def _on_desired(self, desired: Desired, _subject: str) -> None:
        if desired.epoch < self.epoch:
            return
        async with self._settled:
            self.epoch = desired.epoch
            self._wanted = tuple(a.model for a in desired.assignments)
            self.heard.append(desired)
            await self._converge()
            await self.report()
            self._settled.notify_all()

    async def _converge(self) -> None:
        wanted = self.wanted()
        for model, state in list(self._states.items()):
            if model not in wanted and not (isinstance(state, Ready) and state.running):
                await self._set(model, Unloaded())
        for model in wanted:
            if model not in self._states and not self._is_leaving():
                self.loads.append(model)
                await self._set(model, self._load(model))

    def _is_leaving(self) -> bool:
        return any(m not in self.wanted() for m in self._states)

    def _load(self, model: ModelId) -> ReplicaState:
        if model in self._refusals:
            return self._refusals[model]
        need_bytes, free_bytes = self._sizes_mib[model] * MIB, self.node().free_bytes
        if need_bytes > free_bytes:
            words = f"needs {need_bytes // MIB} MiB, {free_bytes // MIB} MiB free"
            return LoadRefused(words, need_bytes, free_bytes)
        return IDLE

    async def _set(self, model: ModelId, state: ReplicaState) -> None:
        self._states[model] = state
        await self._bus.publish(subjects.load(model, self.id), self._replica(model, state))
        if isinstance(state, Unloaded):
            del self._states[model]
        await self.report()

    def _replica(self, model: ModelId, state: ReplicaState) -> Replica:
        holds = isinstance(state, Ready)
        shares = (Share(0, self._sizes_mib[model] * MIB),) if holds else ()
        return Replica(model, self.id, state, shares)
