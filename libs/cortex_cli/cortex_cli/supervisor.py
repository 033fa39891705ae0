"""Keeps a set of programs running, and ends them in order.

Each program leads a process group of its own, so that a Ctrl-C in the terminal reaches only us, and
whatever it leaves behind when it dies can be ended with it. Each dies with us, even if we are killed:
`cortex_kit.tether` asks the kernel for that.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from cortex_cli.errors import CliError
from cortex_cli.journal import Journal
from cortex_cli.restart import Death, decide

BAD_SETTINGS = 2
"""Exit code of a service that cannot run as it is configured; to start it again would not help."""
DRAIN_LIMIT_S = 15.0
_LAST_WORDS_S = 1.0
_LONGEST_LINE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Program:
    """One program to keep running."""

    name: str
    command: tuple[str, ...]
    fatal_codes: frozenset[int] = frozenset({BAD_SETTINGS})
    hidden: str | None = None
    """Lines with this in them are not passed on."""


class Child:
    """One program, started again whenever it dies."""

    def __init__(self, program: Program, environment: Mapping[str, str], journal: Journal) -> None:
        self.program = program
        self._environment = environment
        self._journal = journal
        self._stopping = asyncio.Event()
        self._pid: int | None = None

    async def keep(self) -> None:
        """Run the program again and again, until it is told to stop.

        Raises:
            CliError: it says that it cannot run.
        """
        deaths: tuple[Death, ...] = ()
        while not self._stopping.is_set():
            started_s = _now_s()
            code = await self._live()
            if self._stopping.is_set():
                break
            if code in self.program.fatal_codes:
                raise CliError(f"{self.program.name} cannot run; its last lines say why", exit_code=code)
            deaths = (*deaths[-15:], Death(started_s, _now_s()))
            await self._pause(code, deaths)
        self._journal.say("stopped", program=self.program.name)

    def stop(self) -> None:
        """Let the program finish what it has, within a limit; `keep` returns when it has gone."""
        self._stopping.set()

    def kill(self) -> None:
        """End the program at once, with all of its group."""
        self._stopping.set()
        if self._pid is not None:
            _signal_group(self._pid, signal.SIGKILL)

    async def _live(self) -> int:
        process, output = await self._start()
        self._pid = process.pid
        listening = asyncio.create_task(self._listen(output))
        exiting = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({exiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not exiting.done():
            await self._end(process.pid, exiting)
        _signal_group(process.pid, signal.SIGKILL)
        self._pid = None
        code = await exiting
        await asyncio.wait({listening}, timeout=_LAST_WORDS_S)
        listening.cancel()
        return code

    async def _start(self) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader]:
        read_end, write_end = os.pipe()  # not asyncio's: process.wait() would wait for whoever else holds it
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "cortex_kit.tether", str(os.getpid()), *self.program.command),
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        output = asyncio.StreamReader(limit=_LONGEST_LINE_BYTES)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), os.fdopen(read_end, "rb", buffering=0)
        )
        self._journal.say("started", program=self.program.name, pid=process.pid)
        return process, output

    async def _end(self, pid: int, exiting: asyncio.Task[int]) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        await asyncio.wait({exiting}, timeout=DRAIN_LIMIT_S)
        if not exiting.done():
            because = f"still there {DRAIN_LIMIT_S:g} s after SIGTERM"
            self._journal.say("killed", program=self.program.name, because=because)

    async def _listen(self, output: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await output.readline()
            except ValueError:
                line = b"(a line was too long to show)\n"
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            if self.program.hidden is None or self.program.hidden not in text:
                self._journal.pass_on(self.program.name, text)

    async def _pause(self, code: int, deaths: tuple[Death, ...]) -> None:
        restart = decide(_now_s(), deaths)
        self._journal.say(
            "died",
            program=self.program.name,
            how=_how(code),
            restart_in_s=round(restart.delay_s, 2),
            because=restart.because,
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(restart.delay_s):
                await self._stopping.wait()


class Supervisor:
    """The programs of one `cortex up`, in the order they were started."""

    def __init__(self, environment: Mapping[str, str], journal: Journal) -> None:
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Resolves when it is time to stop: anyone may set it; an exception is that of a program that
        cannot run."""
        self._environment = environment
        self._journal = journal
        self._keeping: dict[Child, asyncio.Task[None]] = {}

    def start(self, program: Program) -> None:
        """Start one more program, and keep it running."""
        child = Child(program, self._environment, self._journal)
        self._keeping[child] = asyncio.create_task(child.keep())
        self._keeping[child].add_done_callback(self._note)

    async def drain(self) -> None:
        """Stop the programs, the last first, each only when the one before has gone."""
        for child, keeping in reversed(list(self._keeping.items())):
            child.stop()
            await asyncio.wait({keeping})

    def kill(self) -> None:
        """End all at once."""
        for child in self._keeping:
            child.kill()

    def _note(self, keeping: asyncio.Task[None]) -> None:
        error = None if keeping.cancelled() else keeping.exception()
        if error is not None and not self.end.done():
            self.end.set_exception(error)


@asynccontextmanager
async def supervising(environment: Mapping[str, str], journal: Journal) -> AsyncIterator[Supervisor]:
    """Offer a supervisor; on leaving, its programs are drained."""
    supervisor = Supervisor(environment, journal)
    try:
        yield supervisor
    finally:
        await supervisor.drain()


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
