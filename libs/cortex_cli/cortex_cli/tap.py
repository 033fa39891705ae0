"""`cortex tap`: what travels on the bus, a line a message."""

import argparse
import asyncio
import sys

import msgspec

from cortex_cli.connection import bus


def run(options: argparse.Namespace) -> int:
    """Print messages until enough have come, or until Ctrl-C."""
    asyncio.run(_listen(options))
    return 0


async def _listen(options: argparse.Namespace) -> None:
    enough = asyncio.Event()
    left: int | None = options.count

    async def show(subject: str, payload: bytes) -> None:
        nonlocal left
        if enough.is_set():
            return
        line = payload if options.raw else f"{subject} {legible(payload)}".encode()
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()
        left = None if left is None else left - 1
        if left == 0:
            enough.set()

    async with bus(options) as connected:
        await connected.hear_raw(options.subject, show)
        await connected.barrier()
        await enough.wait()


def legible(payload: bytes) -> str:
    """Write a payload as one line of JSON, whether it is JSON or MessagePack; else as Python writes bytes."""
    for decode in (msgspec.json.decode, msgspec.msgpack.decode):
        try:
            return msgspec.json.encode(decode(payload)).decode()
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError):
            continue
    return repr(payload)
