"""One rank process as its parent sees it: started, spoken to, and certain to end."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from typing import Self

from cortex_neuron.engine.messages import (
    FromRank,
    LoadOptions,
    ToRank,
    Unframer,
    frame,
    from_rank,
    write_options,
)
from cortex_neuron.engine.seat import Seat, write_seat

_LEAVE_LIMIT_S = 2.0
_CHUNK_BYTES = 1 << 16
# OpenMP threads that spin long while they wait take the cores from whoever else needs them, and then
# lose their own turn; those that sleep at once wake late. Figures in docs/performance.md.
# Ranks on one machine meet on its loopback, whatever its name resolves to.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2000"} | (
    {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
)


class RankProcess:
    """A child process in a session of its own, at the other end of a socket pair."""

    def __init__(self, process: Process, reader: StreamReader, writer: StreamWriter) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._unframer = Unframer()

    @classmethod
    async def spawn(cls, options: LoadOptions, seat: Seat) -> Self:
        """Start a rank; it begins to load once the others are there. Its standard error is ours."""
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "cortex_neuron.engine.rank"),
                    *(str(theirs.fileno()), str(os.getpid()), write_options(options)),
                    pass_fds=[theirs.fileno(), *seat.sockets],
                    stdin=PIPE,
                    start_new_session=True,
                    env={**_ENVIRONMENT, **os.environ, "OMP_NUM_THREADS": str(options.threads)},
                )
            except BaseException:
                writer.close()
                raise
        rank = cls(process, reader, writer)
        rank.seat(seat)
        return rank

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def seat(self, seat: Seat) -> None:
        """Say which rank it is."""
        assert self._process.stdin is not None
        self._process.stdin.write(write_seat(seat))
        self._process.stdin.close()

    def send(self, message: ToRank) -> None:
        """Send `message`, in order, without waiting."""
        self._writer.write(frame(message))

    async def receive(self) -> list[FromRank]:
        """Wait for the next messages.

        Raises:
            EOFError: the rank has ended.
        """
        while True:
            try:
                chunk = await self._reader.read(_CHUNK_BYTES)
            except ConnectionError as error:
                raise EOFError from error
            if not chunk:
                raise EOFError
            if payloads := self._unframer.feed(chunk):
                return [from_rank.decode(payload) for payload in payloads]

    def kill(self) -> None:
        """Make it end at once, whatever it is doing."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> str:
        """Ask it to leave, kill it if it does not, wait until it is gone; returns how it ended."""
        self._writer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_LIMIT_S):
                await self._process.wait()
        self.kill()
        code = await self._process.wait()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
