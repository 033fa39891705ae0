"""The life of a service process: a real process, a real server, real signals."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from conftest import NatsServer

LIMIT_S = 20.0
PROGRAM = """
import asyncio, os
from contextlib import asynccontextmanager
from cortex_kit.service import Context, serve
from cortex_proto.catalogue import parse
from cortex_proto.telemetry import NODES_UP

@asynccontextmanager
async def run(context: Context):
    match os.environ.get("DO"):
        case "crash":
            raise RuntimeError("a bug")
        case "bad catalogue":
            parse("[[models]]")
        case "hang at start":
            print("starting", flush=True)
            await asyncio.Event().wait()
    context.telemetry.gauge(NODES_UP, 1)
    print(context.settings.gateway.listen, context.config_dir, flush=True)
    yield
    print("leaving", flush=True)
    if os.environ.get("DO") == "hang at the end":
        await asyncio.Event().wait()

serve("thing", run)
"""


@dataclass
class Service:
    """A service process under test."""

    process: asyncio.subprocess.Process
    logs: list[dict[str, Any]] = field(default_factory=list)

    async def logged(self, event: str) -> dict[str, Any]:
        """Wait until it has logged `event`."""
        assert self.process.stderr is not None
        async with asyncio.timeout(LIMIT_S):
            while True:
                line = await self.process.stderr.readline()
                assert line, f"it ended without {event}: {self.logs}"
                self.logs.append(json.loads(line))
                if self.logs[-1]["event"] == event:
                    return self.logs[-1]

    async def printed(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), LIMIT_S)).decode().strip()

    async def ended(self) -> tuple[int, str]:
        """Wait until it has ended; return its exit code and the rest of its standard error."""
        _, errors = await asyncio.wait_for(self.process.communicate(), LIMIT_S)
        assert self.process.returncode is not None
        return self.process.returncode, errors.decode()


@contextlib.asynccontextmanager
async def started(url: str, *arguments: str, **environ: str) -> AsyncIterator[Service]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "CORTEX_NATS__URL": url, **environ},
    )  # fmt: skip
    try:
        yield Service(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_service_told_to_stop_leaves_in_order(
    nats_server: NatsServer, number: signal.Signals
) -> None:
    async with started(nats_server.url) as service:
        ready = await service.logged("ready")
        assert (ready["service"], ready["level"]) == ("thing", "info")
        await service.printed()

        service.process.send_signal(number)

        assert await service.printed() == "leaving"
        assert (await service.ended())[0] == 0


async def test_a_service_reads_the_file_it_is_given(nats_server: NatsServer, tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text("[gateway]\nlisten = '127.0.0.1:4'")

    async with started(nats_server.url, "--config", str(file)) as service:
        assert await service.printed() == f"127.0.0.1:4 {tmp_path}"


async def test_unusable_settings_are_one_clear_line(nats_server: NatsServer) -> None:
    async with started(nats_server.url, CORTEX_GATEWAY__SPEED="fast") as service:
        code, errors = await service.ended()

    assert code == 2
    assert errors == "cortex thing: unknown key `speed` - at `gateway`\n"


async def test_an_unusable_catalogue_is_one_clear_line(nats_server: NatsServer) -> None:
    async with started(nats_server.url, DO="bad catalogue") as service:
        code, errors = await service.ended()

    assert code == 2
    assert errors == "cortex thing: Object missing required field `id` - at `models[0]`\n"


async def test_a_crash_is_logged_with_its_traceback(nats_server: NatsServer) -> None:
    async with started(nats_server.url, DO="crash") as service:
        crashed = await service.logged("crashed")

        assert "RuntimeError: a bug" in crashed["exception"]
        assert (await service.ended())[0] == 1


async def test_a_service_waits_for_nats_and_can_be_stopped_meanwhile(spare_server: NatsServer) -> None:
    async with started(spare_server.url) as service:
        await service.logged("waiting_for_nats")

        service.process.terminate()

        assert await service.ended() == (0, "")


async def test_a_service_can_be_stopped_while_it_starts(nats_server: NatsServer) -> None:
    async with started(nats_server.url, DO="hang at start") as service:
        assert await service.printed() == "starting"

        service.process.terminate()

        assert (await service.ended())[0] == 0


async def test_a_second_signal_ends_it_at_once(nats_server: NatsServer) -> None:
    async with started(nats_server.url, DO="hang at the end") as service:
        await service.logged("ready")
        await service.printed()
        service.process.terminate()
        assert await service.printed() == "leaving"

        service.process.terminate()

        assert (await service.ended())[0] == 1


async def test_a_service_whose_supervisor_is_gone_does_not_start(nats_server: NatsServer) -> None:
    async with started(nats_server.url, CORTEX_PARENT_PID=str(2**22)) as service:
        assert (await service.ended())[0] == 1


async def test_a_service_whose_supervisor_lives_starts(nats_server: NatsServer) -> None:
    async with started(nats_server.url, CORTEX_PARENT_PID=str(os.getpid())) as service:
        await service.logged("ready")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tell a process of its parent's death")
async def test_what_is_tethered_dies_with_its_parent(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    parent_code = (
        "import os, subprocess, sys; "
        "subprocess.run([sys.executable, '-m', 'cortex_kit.tether', str(os.getpid()), "
        "'sh', '-c', 'echo up; exec sleep 1000'])"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", parent_code, stdout=write_end)
    os.close(write_end)
    reader = asyncio.StreamReader()
    with os.fdopen(read_end, "rb") as pipe:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        assert await asyncio.wait_for(reader.readline(), LIMIT_S) == b"up\n"

        parent.kill()
        await parent.wait()

        end_of_file_because_all_have_died = await asyncio.wait_for(reader.read(), LIMIT_S)
        assert end_of_file_because_all_have_died == b""
        transport.close()
