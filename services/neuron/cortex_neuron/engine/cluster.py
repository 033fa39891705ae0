"""A loaded model as the neuron sees it: its rank processes, of which rank 0 takes requests.

Killing the ranks frees every byte that the model took, whatever state they are in; so whatever
goes wrong here ends in that. Where several ranks share the model no step ends without each of
them, so the leader's silence tells of a rank that is stuck anywhere.
"""

import asyncio
from collections.abc import Callable
from typing import Self

from cortex_neuron.engine.messages import (
    Broken,
    CancelRequest,
    Ended,
    EngineRequest,
    Loading,
    LoadOptions,
    LoadRefused,
    Ready,
    Refused,
    StepEvents,
)
from cortex_neuron.engine.process import RankProcess
from cortex_neuron.engine.seat import seats
from cortex_proto.errors import LoadFailedError, NodeLostError, from_wire
from cortex_proto.ids import StreamId

OnEvents = Callable[[StepEvents], None]
OnProgress = Callable[[str, float], None]

STEP_LIMIT_S = 60.0
"""Ranks with work that report no step for so long are wedged."""
_SLOW_FACTOR = 20
"""On a slow device the limit is so many times the slowest step so far, if that is more."""


class Cluster:
    """Built by `start` only.

    `died` resolves with the reason when a rank dies or wedges; `close` leaves it pending. Whoever
    is cancelled while awaiting it cancels it for all: where several wait, use `asyncio.shield`.
    """

    def __init__(
        self, ranks: list[RankProcess], ready: Ready, on_events: OnEvents, step_limit_s: float
    ) -> None:
        self.context = ready.context
        self.vocab_size = ready.vocab_size
        self.pages = ready.pages
        loop = asyncio.get_running_loop()
        self.died: asyncio.Future[str] = loop.create_future()
        self._death = ""
        self._ranks = ranks
        self._on_events = on_events
        self._step_limit_s = step_limit_s
        self._pending: set[StreamId] = set()
        self._clock = loop.time
        self._heard_s = loop.time()
        self._slowest_s = 0.0
        self._tasks = [asyncio.create_task(self._hear(rank, number)) for number, rank in enumerate(ranks)]
        self._tasks.append(asyncio.create_task(self._watch()))

    @classmethod
    async def start(
        cls,
        options: LoadOptions,
        *,
        on_events: OnEvents,
        on_progress: OnProgress,
        timeout_s: float,
        step_limit_s: float = STEP_LIMIT_S,
    ) -> Self:
        """Spawn the ranks and wait until the model is loaded.

        `on_events` and `on_progress` are called in this event loop and must return at once.

        Raises:
            LoadFailedError: with the rank's own reason; all is freed.
        """
        ranks: list[RankProcess] = []
        try:
            async with asyncio.timeout(timeout_s):
                with seats(options.world) as given:
                    for seat in given:
                        rank = await RankProcess.spawn(options, seat)
                        ranks.append(rank)
                ready = await _all_loaded(ranks, on_progress)
        except BaseException as error:
            for rank in ranks:
                rank.kill()
            await asyncio.gather(*(rank.end() for rank in ranks))
            if isinstance(error, TimeoutError):
                raise LoadFailedError(f"{options.path} was not loaded within {timeout_s:g} s") from error
            raise
        return cls(ranks, ready, on_events, step_limit_s)

    @property
    def pids(self) -> list[int]:
        """The process ids of the ranks."""
        return [rank.pid for rank in self._ranks]

    def submit(self, request: EngineRequest) -> None:
        """Hand over `request`; what becomes of it comes as events, the last an `Ended` or a `Refused`.

        Raises:
            NodeLostError: the cluster has died.
        """
        if self._death:
            raise NodeLostError(f"the engine has died: {self._death}")
        if not self._pending:
            self._heard_s = self._clock()
        self._pending.add(request.id)
        self._ranks[0].send(request)

    def cancel(self, stream: StreamId) -> None:
        """Stop `stream` before the next step; an `Ended` follows unless it is over already."""
        if not self._death:
            self._ranks[0].send(CancelRequest(stream))

    async def close(self) -> None:
        """End all ranks, and wait until they are gone and all memory is free. May be called again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(rank.end() for rank in self._ranks))

    async def _hear(self, rank: RankProcess, number: int) -> None:
        """Pass on what a rank says until it ends."""
        reason = ""
        try:
            while True:
                for message in await rank.receive():
                    match message:
                        case StepEvents():
                            self._note(message)
                            self._on_events(message)
                        case Broken():
                            reason = f": {message.reason}"
        except EOFError:
            how = await rank.end()
            self._die(f"rank {number} {how}{reason}")
        except Exception as error:
            self._die(f"the events of rank {number} could not be taken in: {error!r}")
            raise

    def _note(self, step: StepEvents) -> None:
        """Remember when the last step was, and who still waits for an end."""
        now_s = self._clock()
        if self._pending:
            self._slowest_s = max(self._slowest_s, now_s - self._heard_s)
        self._heard_s = now_s
        for event in step.events:
            if isinstance(event, Ended | Refused):
                self._pending.discard(event.id)

    async def _watch(self) -> None:
        """Declare the cluster dead when it has work and is silent for too long."""
        while True:
            limit_s = max(self._step_limit_s, _SLOW_FACTOR * self._slowest_s)
            silent_s = self._clock() - self._heard_s if self._pending else 0.0
            if silent_s >= limit_s:
                self._die(f"no step for {limit_s:.0f} s though {len(self._pending)} requests wait")
                return
            await asyncio.sleep(limit_s - silent_s)

    def _die(self, reason: str) -> None:
        self._death = self._death or reason
        if not self.died.done():
            self.died.set_result(reason)
        for rank in self._ranks:
            rank.kill()


async def _all_loaded(ranks: list[RankProcess], on_progress: OnProgress) -> Ready:
    """Follow the loads of all ranks to their end; progress and answer are the leader's.

    Raises:
        LoadFailedError: the first that failed said so, or died.
    """
    leader, *others = ranks
    loads = [asyncio.create_task(_loaded(leader, on_progress))]
    loads += [asyncio.create_task(_loaded(rank, lambda _stage, _fraction: None)) for rank in others]
    try:
        ready, *_ = await asyncio.gather(*loads)
        return ready
    finally:
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)


async def _loaded(rank: RankProcess, on_progress: OnProgress) -> Ready:
    """Follow a load to its end.

    Raises:
        LoadFailedError: the rank said so, or died.
    """
    while True:
        try:
            messages = await rank.receive()
        except EOFError as error:
            raise LoadFailedError(f"the process that loaded the model {await rank.end()}") from error
        for message in messages:
            match message:
                case Loading():
                    on_progress(message.stage, message.fraction)
                case Ready():
                    return message
                case LoadRefused():
                    raise from_wire(message.error)
