"""Gets a model from the Hugging Face hub into its local cache, in a process of its own."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from cortex_neuron import child
from cortex_neuron.files import Repo
from cortex_proto.errors import LoadFailedError

STALL_LIMIT_S = 120.0
"""A download that brings nothing for so long is given up. The hub's library gives up before that."""


class Fetching(msgspec.Struct, frozen=True, tag=True):
    """So much of the download is done, from 0 to 1."""

    fraction: float


class Fetched(msgspec.Struct, frozen=True, tag=True):
    """All is there: a directory as Hugging Face has it, or a .gguf file."""

    path: str


class NotFetched(msgspec.Struct, frozen=True, tag=True):
    """It could not be had."""

    because: str


Said = Fetching | Fetched | NotFetched
"""What the process says, one a line, as JSON."""


async def download(repo: Repo, on_progress: Callable[[float], None]) -> Path:
    """Get what is wanted of `repo`, and return where it is; what is there already is not fetched again.

    Cancelled, it stops the download; files that are finished by then stay in the cache.

    Raises:
        LoadFailedError: no such repository, no access, no network and nothing cached, no room on
            the disk; the text says which.
    """
    async with child.running("cortex_neuron.hub_fetch", msgspec.json.encode(repo).decode()) as process:
        assert process.stdout is not None
        while line := await _next_line(process.stdout, repo):
            match msgspec.json.decode(line, type=Said):
                case Fetching(fraction=fraction):
                    on_progress(fraction)
                case Fetched(path=path):
                    return Path(path)
                case NotFetched(because=because):
                    raise LoadFailedError(because)
        raise LoadFailedError(f"the download of {repo.name} ended with code {await process.wait()}")


async def _next_line(stream: asyncio.StreamReader, repo: Repo) -> bytes:
    try:
        async with asyncio.timeout(STALL_LIMIT_S):
            return await stream.readline()
    except TimeoutError as error:
        raise LoadFailedError(f"the download of {repo.name} stood still for {STALL_LIMIT_S:.0f} s") from error
