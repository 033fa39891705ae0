"""The life of one request: find the model, wait until a replica is ready, send, try again, stream."""

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

import msgspec
import structlog

from cortex_gateway.account import Account
from cortex_gateway.catalogue import KnownCatalogue
from cortex_gateway.fleet import Fleet
from cortex_gateway.loads import Loads
from cortex_gateway.queue import Waiting
from cortex_gateway.report import report
from cortex_gateway.routing import Choice, NoReplica
from cortex_gateway.streams import Streams
from cortex_kit import settings
from cortex_kit.telemetry import Telemetry, now
from cortex_proto.errors import BusError, BusyError, CortexError, Failed, UnavailableError, from_wire, to_wire
from cortex_proto.generation import ACCEPT_LIMIT_S, Delta, Finished, Generate
from cortex_proto.ids import ModelId, NodeId, stream_id

log = structlog.get_logger()

NOTE_PERIOD_S = 0.4
"""Whoever takes the deltas hears something at least so often."""


class Note(msgspec.Struct, frozen=True):
    """There is no delta yet; this is what the request waits for."""

    text: str


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything that serving a request takes."""

    settings: settings.Gateway
    catalogue: KnownCatalogue
    fleet: Fleet
    loads: Loads
    streams: Streams
    waiting: Waiting
    telemetry: Telemetry


class Generation:
    """One request being served."""

    def __init__(self, gateway: Gateway, generate: Generate, account: Account) -> None:
        self._gateway = gateway
        self._generate = generate
        self._account = account
        self._deadline_s = time.monotonic() + gateway.settings.request_timeout_s
        self._tried: set[NodeId] = set()

    async def deltas(self) -> AsyncGenerator[Delta | Note, None]:
        """Yield the answer, up to and with `Finished`; closing this early cancels the request.

        Raises:
            CortexError: there is no answer, or it broke off.
        """
        try:
            async with aclosing(self._serve()) as items:
                async for item in items:
                    if not isinstance(item, Note):
                        self._account.take(item, time.monotonic())
                    yield item
        except Exception as error:
            self._account.outcome = to_wire(error).code
            raise
        finally:
            await report(self._gateway.telemetry, self._account.done(time.monotonic(), now()))

    async def _serve(self) -> AsyncGenerator[Delta | Note, None]:
        model = self._gateway.catalogue.model(self._generate.model).id
        self._account.model = model
        while True:
            async with aclosing(self._until_ready(model)) as notes:
                async for note in notes:
                    yield note
            choice = self._choose(model)
            if isinstance(choice, NoReplica):
                continue
            log.debug("dispatch", request=self._generate.request, node=choice.node, because=choice.because)
            try:
                async with aclosing(self._attempt(model, choice.node)) as items:
                    async for item in items:
                        yield item
            except CortexError as error:
                self._judge(model, choice.node, error)
            else:
                return

    async def _until_ready(self, model: ModelId) -> AsyncGenerator[Note, None]:
        """Wait for a replica that is ready, asking for one meanwhile."""
        if isinstance(self._choose(model), Choice):
            return
        give_up_s = time.monotonic() + self._gateway.settings.wait_timeout_s
        self._account.cold_start = True
        with self._in_queue(model), self._gateway.loads.wanted(model) as wish:
            while isinstance(choice := self._choose(model), NoReplica):
                self._check_deadline()
                if time.monotonic() > give_up_s:
                    raise UnavailableError(f"model {model!r} was not ready in time: {choice.because}")
                await wish.news(NOTE_PERIOD_S)
                yield Note(choice.because)

    async def _attempt(self, model: ModelId, node: NodeId) -> AsyncGenerator[Delta | Note, None]:
        """Send the request to `node` and yield what comes."""
        self._check_deadline()
        now_s = time.monotonic()
        generate = msgspec.structs.replace(
            self._generate,
            stream=stream_id(self._generate.request, self._account.num_attempts),
            model=model,
            budget_ms=int((self._deadline_s - now_s) * 1000),
        )
        self._account.send(node, now_s)
        with self._in_flight(model, node):
            async with self._gateway.streams.opened(node, generate) as stream:
                delta: Delta | None = None
                while not isinstance(delta, Finished):
                    delta = await stream.next(NOTE_PERIOD_S)
                    if isinstance(delta, Failed):
                        raise from_wire(delta)
                    self._check_deadline()
                    if not stream.accepted and time.monotonic() - now_s > ACCEPT_LIMIT_S:
                        raise BusError(f"node {node} did not accept the request in {ACCEPT_LIMIT_S:g} s")
                    yield delta or Note("keep-alive")

    def _judge(self, model: ModelId, node: NodeId, error: CortexError) -> None:
        """Decide what an attempt that failed means: the end, or one more.

        A busy replica stays in the table; any other that failed is left alone until it reports again.

        Raises:
            CortexError: `error`, if it is the end.
        """
        self._tried.add(node)
        replicas = self._gateway.fleet.replicas
        if not isinstance(error, BusyError):
            replicas.drop(model, node)
        spent = self._account.num_attempts >= self._gateway.settings.max_attempts
        if self._account.begun or spent or not error.retryable:
            raise error
        choice = self._choose(model)
        if isinstance(error, BusyError) and (not isinstance(choice, Choice) or choice.node in self._tried):
            raise error
        log.info("attempt_failed", request=self._generate.request, node=node, because=str(error))

    def _choose(self, model: ModelId) -> Choice | NoReplica:
        return self._gateway.fleet.replicas.choose(model, self._tried, time.monotonic())

    def _check_deadline(self) -> None:
        if time.monotonic() > self._deadline_s:
            limit_s = self._gateway.settings.request_timeout_s
            raise UnavailableError(f"the request took longer than {limit_s:g} s")

    @contextmanager
    def _in_queue(self, model: ModelId) -> Iterator[None]:
        self._gateway.waiting.join(model)
        try:
            yield
        finally:
            self._gateway.waiting.leave(model)

    @contextmanager
    def _in_flight(self, model: ModelId, node: NodeId) -> Iterator[None]:
        self._gateway.fleet.replicas.begin(model, node)
        try:
            yield
        finally:
            self._gateway.fleet.replicas.end(model, node)
