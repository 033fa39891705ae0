"""The supervisor, with small real programs."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from builders.waiting import until
from cortex_cli.errors import CliError
from cortex_cli.journal import Journal
from cortex_cli.supervisor import Program, Supervisor, supervising

LIMIT_S = 20.0

OBEDIENT = """
import signal, sys, pathlib
signal.signal(signal.SIGTERM, lambda *_: (log("stopped"), sys.exit(0)))
def log(text): pathlib.Path(sys.argv[1]).open("a").write(f"{sys.argv[2]} {text}\\n")
log("started")
while True: signal.pause()
"""
DEAF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
while True: signal.pause()
"""
PARENT = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=False)
print(child.pid, flush=True)
while True: signal.pause()
"""


class Lines(Journal):
    """A journal that also keeps what it writes, and wakes whoever waits for a line."""

    def __init__(self) -> None:
        super().__init__(as_json=True)
        self.seen: list[str] = []
        self._more = asyncio.Condition()

    def _write(self, line: str) -> None:
        self.seen.append(line)
        asyncio.get_running_loop().create_task(self._wake())

    async def _wake(self) -> None:
        async with self._more:
            self._more.notify_all()

    async def wait_for(self, *words: str, count: int = 1) -> list[str]:
        """Wait until `count` lines hold all `words`; return those lines."""

        def found() -> list[str]:
            return [line for line in self.seen if all(word in line for word in words)]

        async with asyncio.timeout(LIMIT_S), self._more:
            await self._more.wait_for(lambda: len(found()) >= count)
        return found()


def program(name: str, code: str, *arguments: str) -> Program:
    return Program(name, (sys.executable, "-c", code, *arguments))


@contextlib.asynccontextmanager
async def supervisor() -> AsyncIterator[tuple[Supervisor, Lines]]:
    lines = Lines()
    async with supervising(os.environ, lines) as supervised:
        yield supervised, lines


def num_started(log: Path) -> int:
    return log.read_text().count("started") if log.exists() else 0


def pid_of(line: str) -> int:
    return int(line.partition('"pid":')[2].partition("}")[0])


async def test_a_program_that_is_killed_comes_back() -> None:
    async with supervisor() as (supervised, lines):
        supervised.start(program("p", "import signal; print('here', flush=True); signal.pause()"))
        await lines.wait_for("here")
        (first,) = await lines.wait_for("started")

        os.kill(pid_of(first), signal.SIGKILL)

        await lines.wait_for("died", "SIGKILL", "it died early once")
        await lines.wait_for("here", count=2)


async def test_a_program_that_says_its_settings_are_bad_ends_everything() -> None:
    async with supervisor() as (supervised, lines):
        supervised.start(program("p", "import sys; print('[x] y is wrong'); sys.exit(2)"))

        with pytest.raises(CliError, match="p cannot run") as ended:
            await asyncio.wait_for(supervised.end, LIMIT_S)

        assert ended.value.exit_code == 2
        await lines.wait_for("[x] y is wrong")


async def test_programs_stop_one_after_the_other_the_last_first(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with supervisor() as (supervised, _):
        for name in ("nats", "scheduler", "gateway"):
            supervised.start(program(name, OBEDIENT + f"\n# {name}", str(log), name))
        await asyncio.to_thread(until, lambda: num_started(log) == 3, within_s=LIMIT_S, what="all start")

    stops = [line.split()[0] for line in log.read_text().splitlines() if line.endswith("stopped")]
    assert stops == ["gateway", "scheduler", "nats"]


async def test_a_program_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex_cli.supervisor.DRAIN_LIMIT_S", 0.2)
    async with supervisor() as (supervised, lines):
        supervised.start(program("p", DEAF))
        await lines.wait_for("deaf")
        (started,) = await lines.wait_for("started")

        async with asyncio.timeout(LIMIT_S):
            await supervised.drain()

    await lines.wait_for("killed", "0.2 s after SIGTERM")
    assert not psutil.pid_exists(pid_of(started))


async def test_what_a_dead_program_leaves_behind_is_ended_too() -> None:
    async with supervisor() as (supervised, lines):
        supervised.start(program("p", PARENT))
        (line,) = await lines.wait_for('"service":"p"')
        grandchild = psutil.Process(int(line.partition('"event":"')[2].partition('"')[0]))
        (started,) = await lines.wait_for("started")

        os.kill(pid_of(started), signal.SIGKILL)

        await asyncio.to_thread(psutil.wait_procs, [grandchild], LIMIT_S)
        assert not grandchild.is_running()


async def test_a_program_told_to_stop_while_it_waits_to_be_restarted_is_not_restarted() -> None:
    async with supervisor() as (supervised, lines):
        supervised.start(program("p", "raise SystemExit(1)"))
        await lines.wait_for("died", count=3)

    assert len(await lines.wait_for('"event":"stopped"')) == 1
    assert "stopped" in lines.seen[-1]


async def test_a_line_too_long_to_hold_does_not_end_the_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex_cli.supervisor._LONGEST_LINE_BYTES", 1000)
    async with supervisor() as (supervised, lines):
        code = "import signal; print('x' * 9000); print('after', flush=True); signal.pause()"
        supervised.start(program("p", code))

        await lines.wait_for("after")
