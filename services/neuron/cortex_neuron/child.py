"""Runs a short-lived Python process beside the neuron, for what would block it or load torch into it."""

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping

_LEAVE_LIMIT_S = 2.0
_NOTHING: Mapping[str, str] = {}


@contextlib.asynccontextmanager
async def running(
    module: str, *arguments: str, stderr: int = DEVNULL, environment: Mapping[str, str] = _NOTHING
) -> AsyncIterator[Process]:
    """Run `python -m module arguments` with its output in a pipe; it is gone when this is left.

    `environment` is added to ours. It is asked to end first, so that it can clear away what it has
    not finished, and it dies with us.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cortex_kit.tether", str(os.getpid())),
        *(sys.executable, "-m", module, *arguments),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=stderr,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            await _end(process)


async def _end(process: Process) -> None:
    """End it, by force if need be; also when we are being cancelled."""
    try:
        process.terminate()
        async with asyncio.timeout(_LEAVE_LIMIT_S):
            await process.wait()
    except (TimeoutError, ProcessLookupError):
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
