"""A real gateway in the test's own process, and what a test needs around it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from builders.peers import TINY, FakeNeuron
from cortex_gateway.service import serving_gateway
from cortex_kit.bus import Bus
from cortex_kit.kv import Kv
from cortex_kit.service import Context
from cortex_kit.settings import Gateway, Settings
from cortex_kit.telemetry import Telemetry
from cortex_proto.telemetry import RequestDone
from cortex_proto.wire import from_json

LIMIT_S = 15.0
HELLO: dict[str, Any] = {"model": TINY, "messages": [{"role": "user", "content": "hello"}]}


@dataclass(frozen=True)
class Running:
    """The gateway, a client of it, and what it reports."""

    url: str
    http: httpx.AsyncClient
    telemetry: Telemetry
    records: "asyncio.Queue[RequestDone]"

    async def chat(self, **fields: Any) -> httpx.Response:
        """Ask for an answer that is not streamed."""
        return await self.http.post("/v1/chat/completions", json={**HELLO, **fields})

    def stream(self, **fields: Any) -> AbstractAsyncContextManager[httpx.Response]:
        """Ask for a stream; to be entered."""
        return self.http.stream("POST", "/v1/chat/completions", json={**HELLO, "stream": True, **fields})

    async def streamed(self, **fields: Any) -> str:
        """Ask for a stream and return all of it."""
        async with self.stream(**fields) as response:
            return (await response.aread()).decode()

    async def done(self) -> RequestDone:
        """Wait for the record of the next request that ends."""
        async with asyncio.timeout(LIMIT_S):
            return await self.records.get()

    async def ready(self) -> None:
        """Wait until it is."""
        async with asyncio.timeout(LIMIT_S):
            while (await self.http.get("/readyz")).status_code != 200:
                pass

    def sdk(self) -> AsyncOpenAI:
        """Return the vendor's own client."""
        client = DefaultAsyncHttpxClient(trust_env=False, timeout=LIMIT_S)
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, http_client=client)


GatewayFactory = Callable[..., Awaitable[Running]]
NeuronFactory = Callable[..., Awaitable[FakeNeuron]]


@asynccontextmanager
async def running_gateway(bus: Bus, folder: Path, **options: object) -> AsyncIterator[Running]:
    """Run a gateway with these settings; it may not be ready yet."""
    settings = Settings(gateway=msgspec.convert({"listen": "127.0.0.1:0", **options}, Gateway))
    records: asyncio.Queue[RequestDone] = asyncio.Queue()

    async def record(_subject: str, payload: bytes) -> None:
        records.put_nowait(from_json(payload, RequestDone))

    await bus.hear_raw(f"cortex.metrics.gateway.{bus.instance}.request", record)
    telemetry = Telemetry(bus)
    async with serving_gateway(Context(settings, bus, Kv(bus), telemetry, folder)) as port:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S, trust_env=False) as client:
            yield Running(url, client, telemetry, records)
