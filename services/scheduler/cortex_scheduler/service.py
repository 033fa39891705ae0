"""The scheduler's shell: hears nodes, answers `ensure` and `status`, all in one task that owns the state.

Whatever arrives becomes a piece of work in the inbox; the owner does one after the other. So two
decisions never overlap, and however many ask for a model, it is placed once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import structlog

from cortex_kit.bus import Subscription
from cortex_kit.service import Context
from cortex_kit.tasks import end
from cortex_proto import subjects
from cortex_proto.errors import CortexError, UnavailableError
from cortex_proto.fleet import Node, Replica
from cortex_proto.ids import ModelId, NodeId
from cortex_proto.placement import (
    AskStatus,
    Ensure,
    EnsureReply,
    FleetStatus,
    ModelStatus,
    Pending,
)
from cortex_proto.telemetry import NODES_UP
from cortex_proto.wire import unpack
from cortex_scheduler.books import Books, DeposedError
from cortex_scheduler.catalogue_file import read_catalogue
from cortex_scheduler.fleet import Fleet
from cortex_scheduler.placer import Placer

log = structlog.get_logger()

Work = Callable[[], Awaitable[None]]
_TICK_S = 1.0
_OPEN_LIMIT_S = 60.0
_FIRST_NODE_LIMIT_S = 10.0
"""A scheduler that has just started waits so long for the first node before it says that there is none."""


@asynccontextmanager
async def scheduler(context: Context) -> AsyncIterator[None]:
    """Place models while open.

    Raises:
        CatalogueError: the catalogue cannot be used.
        DeposedError: another scheduler took office.
    """
    catalogue, source = read_catalogue(context.settings.scheduler.models_config, context.config_dir)
    log.info("catalogue_read", source=source, models=[m.id for m in catalogue])
    eviction, own = context.settings.eviction, context.settings.scheduler
    fleet = Fleet(catalogue, eviction.min_residence_s, own.load_retry_s)
    office = Scheduler(context, fleet, Books(context.kv, catalogue))
    await office.hear()
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(office.own()), group.create_task(office.tick())]
            answering = await office.answer()
            try:
                yield
            finally:
                for subscription in answering:
                    await subscription.stop()
                await end(*running)
    except* DeposedError as deposed:
        raise deposed.exceptions[0] from None


class Scheduler:
    """Owns the fleet and the books."""

    def __init__(self, context: Context, fleet: Fleet, books: Books) -> None:
        self._context = context
        self._fleet = fleet
        self._books = books
        self._placer = Placer(fleet, books, context.bus, context.telemetry)
        self._inbox: asyncio.Queue[Work] = asyncio.Queue()
        self._asked: dict[ModelId, asyncio.Future[EnsureReply | CortexError]] = {}
        self._open = asyncio.Event()
        self._began_s = _now_s()
        self._num_nodes = -1

    async def hear(self) -> None:
        """Hear the nodes; what they say waits until it is somebody's turn to listen."""
        bus = self._context.bus
        await bus.hear_raw(subjects.ANY_NODE.subject, self._on_node)
        await bus.hear(subjects.ANY_LOAD, self._on_replica)
        bus.on_reconnect(self._on_reconnect)
        await bus.barrier()

    async def answer(self) -> list[Subscription]:
        """Answer once the books are open; return what answers.

        Raises:
            TimeoutError: KV does not answer.
        """
        bus = self._context.bus
        async with asyncio.timeout(_OPEN_LIMIT_S):
            await self._open.wait()
        answering = [
            await bus.answer(subjects.ENSURE, self._on_ensure),
            await bus.answer(subjects.STATUS, self._on_status),
        ]
        await bus.barrier()
        return answering

    async def own(self) -> None:
        """Do the work of the inbox, for ever.

        Raises:
            DeposedError: another scheduler took office.
        """
        try:
            while True:
                work = await self._inbox.get()
                try:
                    await work()
                except DeposedError:
                    raise
                except CortexError as error:
                    log.warning("put_off", because=str(error))
        except DeposedError as error:
            log.error("deposed", because=str(error))  # noqa: TRY400 - no bug, so no traceback
            raise
        finally:
            for turn in self._asked.values():
                turn.set_result(UnavailableError("this scheduler has left"))

    async def tick(self) -> None:
        """Look around once a second, for ever, and at once."""
        while True:
            await self._in_turn(self._look_around)
            await asyncio.sleep(_TICK_S)

    async def _on_node(self, subject: str, payload: bytes) -> None:
        if not payload:
            self._inbox.put_nowait(partial(self._lose, NodeId(subject.rpartition(".")[2])))
            return
        try:
            node: Node = unpack(payload, Node)
        except msgspec.DecodeError as error:
            log.warning("node_unreadable", subject=subject, because=str(error))
            return
        self._inbox.put_nowait(partial(self._hear_node, node))

    async def _on_replica(self, replica: Replica, _subject: str) -> None:
        self._inbox.put_nowait(partial(self._hear_replica, replica))

    async def _on_reconnect(self) -> None:
        self._open.clear()
        self._inbox.put_nowait(self._open_books)

    async def _on_ensure(self, ask: Ensure) -> EnsureReply:
        """Answer all who ask for a model before its turn comes with one decision."""
        turn = self._asked.get(ask.model)
        if turn is None:
            turn = self._asked[ask.model] = asyncio.get_running_loop().create_future()
            self._inbox.put_nowait(partial(self._ensure, ask.model, turn))
        outcome = await asyncio.shield(turn)
        if isinstance(outcome, CortexError):
            raise outcome
        return outcome

    async def _on_status(self, _ask: AskStatus) -> FleetStatus:
        """Say how things stand at this instant; it only reads, so it need not wait for its turn."""
        models = tuple(
            ModelStatus(m, self._books.holders(m.id), self._placer.because(m.id))
            for m in self._fleet.catalogue
        )
        return FleetStatus(self._books.epoch, self._fleet.nodes(_now_s()), models)

    async def _in_turn(self, work: Work) -> None:
        done = asyncio.Event()

        async def turn() -> None:
            try:
                await work()
            finally:
                done.set()

        self._inbox.put_nowait(turn)
        await done.wait()

    async def _open_books(self) -> None:
        """Take office, or take stock after a reconnect: what was not heard meanwhile is read.

        Every node that should hold something is given time to speak again before it counts as dead.
        """
        await self._books.open()
        self._fleet.expect(self._books.desired, _now_s())
        for node in await self._books.nodes():
            self._fleet.hear_node(node, _now_s())
        for node in self._fleet.nodes(_now_s()):
            await self._tend(node)
        log.info("in_office", epoch=self._books.epoch, nodes=[n.id for n in self._fleet.nodes(_now_s())])
        self._open.set()

    async def _look_around(self) -> None:
        if not self._context.bus.is_connected:
            self._fleet.expect_all(_now_s())
        for node in self._fleet.bury(_now_s()):
            log.warning("node_lost", node=node, because="it has not been heard of")
        self._count_nodes()
        if not self._open.is_set() or await self._books.are_lost():
            await self._open_books()

    async def _lose(self, node: NodeId) -> None:
        self._fleet.lose_node(node)
        log.warning("node_lost", node=node, because="its entry was deleted or has expired")
        self._count_nodes()

    async def _hear_node(self, node: Node) -> None:
        self._fleet.hear_node(node, _now_s())
        self._count_nodes()
        if self._open.is_set():
            await self._tend(node)

    async def _hear_replica(self, replica: Replica) -> None:
        self._fleet.hear_replica(replica, _now_s())
        if self._open.is_set():
            await self._placer.drop_refused(replica.node)

    async def _tend(self, node: Node) -> None:
        """Do what a word from a node calls for."""
        if node.epoch > self._books.epoch:
            await self._books.pass_epoch(node.epoch)
        if node.id not in self._books.desired:
            await self._placer.adopt(node)
        await self._placer.drop_refused(node.id)

    def _count_nodes(self) -> None:
        num_nodes = len(self._fleet.nodes(_now_s()))
        if num_nodes != self._num_nodes:
            self._num_nodes = num_nodes
            self._context.telemetry.gauge(NODES_UP, num_nodes)

    async def _ensure(self, model: ModelId, turn: "asyncio.Future[EnsureReply | CortexError]") -> None:
        del self._asked[model]
        try:
            turn.set_result(await self._decide(model))
        except CortexError as error:
            turn.set_result(error)
            if isinstance(error, DeposedError):
                raise

    async def _decide(self, model: ModelId) -> EnsureReply:
        if not self._open.is_set():
            return Pending("the books are being read again after a lost connection")
        known = self._fleet.catalogue.get(model) is not None
        if known and not self._num_nodes and _now_s() - self._began_s < _FIRST_NODE_LIMIT_S:
            return Pending("no node has reported yet")
        return await self._placer.ensure(model, _now_s())


def _now_s() -> float:
    return asyncio.get_running_loop().time()
