"""From an `ensure` to what is written down: asks `placement`, asks the evictor, writes the books."""

from collections.abc import Sequence

import structlog

from cortex_kit.bus import Bus
from cortex_kit.kv import RevisionConflictError
from cortex_kit.telemetry import Telemetry, now
from cortex_proto.catalogue import Model
from cortex_proto.errors import BusError, CortexError, ModelUnknownError, NoRoomError
from cortex_proto.fleet import Loading, Node, Ready
from cortex_proto.ids import ModelId, NodeId
from cortex_proto.placement import (
    Assignment,
    EnsureReply,
    MakeRoom,
    MakeRoomReply,
    NoVictims,
    Pending,
    Placed,
)
from cortex_proto.subjects import MAKE_ROOM
from cortex_proto.telemetry import EVICTIONS, Decided
from cortex_scheduler.books import Books
from cortex_scheduler.fleet import Fleet
from cortex_scheduler.placement import Displace, Place, Site, Wait, dismiss, fit, place, question

log = structlog.get_logger()

_EVICTOR_LIMIT_S = 2.0
_MAX_TRIES = 3


class Placer:
    """Carries out one decision at a time on the fleet and the books it is handed."""

    def __init__(self, fleet: Fleet, books: Books, bus: Bus, telemetry: Telemetry) -> None:
        self._fleet = fleet
        self._books = books
        self._bus = bus
        self._telemetry = telemetry
        self._because: dict[ModelId, str] = {}

    def because(self, model: ModelId) -> str:
        """Return the last decision on `model`."""
        assigned = (a for d in self._books.desired.values() for a in d.assignments if a.model.id == model)
        return self._because.get(model) or next((a.because for a in assigned), "nobody has asked for it yet")

    async def ensure(self, name: ModelId, now_s: float) -> EnsureReply:
        """See to it that a model is assigned to a live node.

        Raises:
            ModelUnknownError: it is not in the catalogue.
            DeposedError: another scheduler is in office.
            UnavailableError: it cannot be had; see `placement.place`.
        """
        model = self._fleet.catalogue.get(name)
        if model is None:
            raise ModelUnknownError(f"no model {name!r} in the catalogue")
        try:
            return await self._ensure(model, now_s)
        except BusError as error:
            return self._wait(model.id, f"the books cannot be written: {error}")
        except CortexError as error:
            self._note(model.id, str(error))
            raise

    async def drop_refused(self, node: NodeId) -> None:
        """Take back what `node` was assigned and has refused; who still wants it will ask again.

        Raises:
            DeposedError: another scheduler is in office.
            RevisionConflictError, BusError: it was not written; call again.
        """
        desired = self._books.desired.get(node)
        refused = self._fleet.refused(desired) if desired else {}
        if desired is None or not refused:
            return
        await self._books.write(node, (a for a in desired.assignments if a.model.id not in refused))
        for model, state in refused.items():
            self._note(model, f"{node} refused: {state.because}")

    async def adopt(self, node: Node) -> None:
        """Write down what is on a node that the books do not know: they were lost, or the node is new.

        Raises:
            DeposedError: another scheduler is in office.
            RevisionConflictError, BusError: it was not written; call again.
        """
        adopted = self._fleet.adopted(node.id)
        await self._books.write(node.id, adopted)
        log.info("node_adopted", node=node.id, models=[a.model.id for a in adopted])

    async def _ensure(self, model: Model, now_s: float) -> EnsureReply:
        for _ in range(_MAX_TRIES):
            if placed := self._standing(model, now_s):
                return placed
            try:
                return await self._decide(model, now_s)
            except RevisionConflictError:
                log.warning("books_changed", model=model.id)
        return Pending("what should run where was changed by somebody else meanwhile")

    def _standing(self, model: Model, now_s: float) -> Placed | None:
        """Return where the model is already, a node on which it is ready before others."""
        holders = [n for n in self._books.holders(model.id) if self._fleet.is_alive(n, now_s)]
        states = [(self._fleet.state(n, model.id), n) for n in holders]
        if not states:
            return None
        state, node = min(states, key=lambda s: (not isinstance(s[0], Ready), s[1]))
        match state:
            case Ready():
                return Placed(node, f"ready on {node}")
            case Loading(stage=stage, progress=progress):
                return Placed(node, f"loading on {node}: {stage}, {progress:.0%}")
            case _:
                return Placed(node, f"assigned to {node}, which has yet to begin")

    async def _decide(self, model: Model, now_s: float) -> EnsureReply:
        decision = place(model, self._fleet.sites(model, self._books.desired, now_s))
        if isinstance(decision, Displace):
            decision = await self._make_room(model, decision.sites)
        if isinstance(decision, Wait):
            return self._wait(model.id, decision.because)
        await self._assign(model, decision)
        self._fleet.note_assigned(decision.node, model.id, now_s)
        return Placed(decision.node, decision.because)

    async def _make_room(self, model: Model, sites: Sequence[Site]) -> Place | Wait:
        """Ask the evictor, site by site, until it finds victims."""
        refusals: list[NoVictims] = []
        for site in sites:
            try:
                outcome = await self._clear(model, site)
            except BusError as error:
                log.warning("evictor_silent", because=str(error))
                return Wait("the evictor does not answer")
            if isinstance(outcome, Place):
                return outcome
            refusals.append(outcome)
        because = "; ".join(r.because for r in refusals)
        if any(r.busy for r in refusals):
            return Wait(because)
        raise NoRoomError(because)

    async def _clear(self, model: Model, site: Site) -> Place | NoVictims:
        """Ask for victims, one short device after another, until `model` has room on `site`."""
        victims: list[ModelId] = []
        reasons: list[str] = []
        while (devices := fit(model, site)) is None:
            reply = await self._ask_evictor(question(model, site))
            if isinstance(reply, NoVictims):
                return reply
            cleared = dismiss(model, site, reply.models)
            if cleared == site:
                return NoVictims(f"{site.node}: the evictor names nobody who may leave")
            staying = {t.resident.model for t in cleared.tenants}
            victims += [t.resident.model for t in site.tenants if t.resident.model not in staying]
            reasons.append(reply.because)
            site = cleared
        return Place(site.node, devices, f"room was made by {'; '.join(reasons)}", tuple(victims))

    async def _ask_evictor(self, ask: MakeRoom) -> MakeRoomReply:
        reply: MakeRoomReply = await self._bus.ask(MAKE_ROOM, ask, timeout_s=_EVICTOR_LIMIT_S)
        return reply

    async def _assign(self, model: Model, decision: Place) -> None:
        """Take the model off the dead nodes that held it, then let it in and its victims out at once."""
        for node in self._books.holders(model.id):
            kept = (a for a in self._books.desired[node].assignments if a.model.id != model.id)
            await self._books.write(node, kept)
        desired = self._books.desired.get(decision.node)
        kept = (a for a in (desired.assignments if desired else ()) if a.model.id not in decision.victims)
        assignment = Assignment(model, decision.devices, decision.because)
        await self._books.write(decision.node, (*kept, assignment))
        for victim in decision.victims:
            self._telemetry.count(EVICTIONS, model=victim, node=decision.node)
            await self._tell(victim, decision.node, "evict", f"{model.id} needs its room: {decision.because}")
        await self._tell(model.id, decision.node, "place", decision.because)

    async def _tell(self, model: ModelId, node: NodeId, verb: str, because: str) -> None:
        self._note(model, because)
        log.info("decided", verb=verb, model=model, node=node, because=because)
        await self._telemetry.event(Decided(model, node, verb, because, self._books.epoch, now()))

    def _wait(self, model: ModelId, because: str) -> Pending:
        self._note(model, because)
        return Pending(because)

    def _note(self, model: ModelId, because: str) -> None:
        self._because[model] = because
