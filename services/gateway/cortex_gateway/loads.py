"""Asks the scheduler for the models that requests wait for: one question a second per model."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cortex_kit.bus import Bus
from cortex_proto.errors import BusError, CortexError, UnavailableError
from cortex_proto.ids import ModelId
from cortex_proto.placement import Ensure
from cortex_proto.subjects import ENSURE

ASK_PERIOD_S = 1.0
ASK_LIMIT_S = 3.0
SCHEDULER_LIMIT_S = 30.0
"""A scheduler that answers nothing for so long is not waited for any more."""


class Wish:
    """A model that requests wait for."""

    def __init__(self) -> None:
        self.because = ""
        """The scheduler's last word."""
        self.num_waiting = 0
        self._error: CortexError | None = None
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Let all that wait look again."""
        self._news.set()
        self._news = asyncio.Event()

    def fail(self, error: CortexError) -> None:
        """Tell all that wait that it cannot be."""
        self._error = error
        self.wake()

    async def news(self, timeout_s: float) -> None:
        """Return when something has changed, or when the time is over.

        Raises:
            CortexError: the model cannot be had.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        if self._error is not None:
            raise self._error


class Loads:
    """All wishes, by model."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._wishes: dict[ModelId, tuple[Wish, asyncio.Task[None]]] = {}

    def wake(self, model: ModelId) -> None:
        """Say that something has changed about `model`."""
        if model in self._wishes:
            self._wishes[model][0].wake()

    @contextmanager
    def wanted(self, model: ModelId) -> Iterator[Wish]:
        """Ask for `model` while open, once for all who want it."""
        if model not in self._wishes:
            wish = Wish()
            asking = asyncio.create_task(self._ask_for_ever(model, wish), name=f"ask for {model}")
            self._wishes[model] = wish, asking
        wish, asking = self._wishes[model]
        wish.num_waiting += 1
        try:
            yield wish
        finally:
            wish.num_waiting -= 1
            if not wish.num_waiting:
                asking.cancel()
                self._forget(model, wish)

    async def _ask_for_ever(self, model: ModelId, wish: Wish) -> None:
        """Ask until it cannot be; those who come later ask anew."""
        last_answer_s = time.monotonic()
        while True:
            try:
                reply = await self._bus.ask(ENSURE, Ensure(model), timeout_s=ASK_LIMIT_S)
                wish.because, last_answer_s = reply.because, time.monotonic()
            except BusError as error:
                wish.because = "the scheduler does not answer"
                if time.monotonic() - last_answer_s > SCHEDULER_LIMIT_S:
                    return self._refuse(model, wish, UnavailableError(f"{wish.because}: {error}"))
            except CortexError as error:
                return self._refuse(model, wish, error)
            await asyncio.sleep(ASK_PERIOD_S)

    def _refuse(self, model: ModelId, wish: Wish, error: CortexError) -> None:
        self._forget(model, wish)
        wish.fail(error)

    def _forget(self, model: ModelId, wish: Wish) -> None:
        if model in self._wishes and self._wishes[model][0] is wish:
            del self._wishes[model]
