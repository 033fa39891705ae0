"""A real neuron on a real bus, with a tiny model."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from builders.checkpoints import write_llama
from builders.neuron import CONTEXT, NODE, Gateway, MakeGateway, Start, Watch
from builders.tokenizers import byte_tokenizer, write_tokenizer
from cortex_kit.buckets import NODES, PLACE
from cortex_kit.bus import Bus
from cortex_kit.kv import Kv
from cortex_kit.service import Context
from cortex_kit.settings import Neuron, Settings
from cortex_kit.telemetry import Telemetry
from cortex_neuron.service import run
from cortex_neuron.streams import Limits
from cortex_proto import subjects


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of random numbers, with a tokenizer, and a context that takes it minutes to fill."""
    path = write_llama(
        tmp_path_factory.mktemp("tiny"),
        vocab_size=byte_tokenizer().get_vocab_size(),
        max_position_embeddings=CONTEXT,
    )
    return write_tokenizer(path)


@pytest.fixture
async def start(
    bus_factory: Callable[..., Awaitable[Bus]], checkpoint: Path, tmp_path: Path
) -> AsyncIterator[Start]:
    """`await start(memory_limit_mb=...)`: a neuron with these settings."""
    async with contextlib.AsyncExitStack() as stack:

        async def begin(limits: Limits | None = None, **fields: Any) -> Watch:
            outside, bus = await bus_factory("test"), await bus_factory("neuron")
            watch = Watch(Kv(outside), checkpoint)
            await watch.kv.ensure_bucket(PLACE)
            await watch.kv.ensure_bucket(NODES)
            await outside.hear(subjects.ANY_LOAD, watch.note)
            await outside.barrier()
            defaults: dict[str, Any] = {
                "name": NODE,
                "listen": "127.0.0.1:0",
                "devices": "cpu",
                "kv_cache_mb": 64,
                "threads": 1,
            }
            settings = Settings(neuron=Neuron(**(defaults | fields)))
            context = Context(settings, bus, Kv(bus), Telemetry(bus), tmp_path)
            watch.listen = settings.neuron.listen
            await stack.enter_async_context(watch.life)
            await watch.life.enter_async_context(run(context, limits or Limits()))
            return watch

        yield begin


@pytest.fixture
async def make_gateway(bus_factory: Callable[..., Awaitable[Bus]]) -> MakeGateway:
    """`await make_gateway()`: one more gateway."""

    async def make() -> Gateway:
        gateway = Gateway(await bus_factory("gateway"))
        await gateway.start()
        return gateway

    return make
