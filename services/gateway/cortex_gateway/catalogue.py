"""The catalogue as the gateway knows it: read from the scheduler's bucket, kept up to date."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import structlog

from cortex_kit.bus import Bus
from cortex_kit.kv import Kv
from cortex_kit.tasks import end
from cortex_proto.catalogue import Catalogue, Model
from cortex_proto.errors import BusError, ModelUnknownError, UnavailableError
from cortex_proto.subjects import CATALOGUE, CATALOGUE_CHANGED

log = structlog.get_logger()

RETRY_S = 0.5
"""Between two looks while nothing is known yet."""
REFRESH_S = 10.0
"""Between two looks otherwise: heals a change that was not heard."""


class KnownCatalogue:
    """The newest catalogue heard of."""

    def __init__(self, kv: Kv) -> None:
        self._kv = kv
        self._known: Catalogue | None = None

    @property
    def current(self) -> Catalogue:
        """The catalogue.

        Raises:
            UnavailableError: it is not known yet.
        """
        if self._known is None:
            raise UnavailableError("the catalogue is not known yet: the scheduler has not been heard of")
        return self._known

    def model(self, name: str) -> Model:
        """Find a model by its id or an alias.

        Raises:
            UnavailableError: the catalogue is not known yet.
            ModelUnknownError: there is no such model.
        """
        model = self.current.get(name)
        if model is None:
            raise ModelUnknownError(f"model {name!r} does not exist; /v1/models lists those that do")
        return model

    async def hear(self, catalogue: Catalogue, _subject: str) -> None:
        """Take in a new catalogue."""
        if catalogue != self._known:
            log.info("catalogue", models=len(catalogue.models), aliases=len(catalogue.aliases))
        self._known = catalogue

    async def read(self) -> None:
        """Look it up; the bucket may not exist yet, or be written in words to come."""
        try:
            entry = await self._kv.get(CATALOGUE)
        except (BusError, msgspec.DecodeError) as error:
            log.debug("catalogue_unread", because=str(error))
            return
        if entry is not None:
            await self.hear(entry.value, CATALOGUE.name)

    async def read_for_ever(self) -> None:
        """Look it up now and then."""
        while True:
            await self.read()
            await asyncio.sleep(RETRY_S if self._known is None else REFRESH_S)


@asynccontextmanager
async def known_catalogue(bus: Bus, kv: Kv) -> AsyncIterator[KnownCatalogue]:
    """Keep the catalogue up to date while open."""
    catalogue = KnownCatalogue(kv)
    heard = await bus.hear(CATALOGUE_CHANGED, catalogue.hear)
    bus.on_reconnect(catalogue.read)
    reading = asyncio.create_task(catalogue.read_for_ever())
    try:
        yield catalogue
    finally:
        await end(reading)
        await heard.stop()
