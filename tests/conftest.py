"""Fixtures that every test may use: a real NATS server, and a bus and a KV client on it."""

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from cortex_kit.bus import Bus, connect
from cortex_kit.ids import new_instance
from cortex_kit.kv import Kv
from cortex_kit.settings import Nats

START_LIMIT_S = 20.0

BusFactory = Callable[..., Awaitable[Bus]]


class NatsServer:
    """A real nats-server on a port of its own, which it keeps over restarts."""

    def __init__(self, folder: Path, max_payload: str = "8MB") -> None:
        self.port = _free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.store = folder / "jetstream"
        self._config = folder / "nats.conf"
        self._config.write_text(
            f'listen: "127.0.0.1:{self.port}"\nmax_payload: {max_payload}\n'
            f'jetstream {{ store_dir: "{self.store}" }}\n'
        )
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Start, and return when it accepts connections."""
        self._process = subprocess.Popen(
            [_nats_server(), "-c", str(self._config)], stderr=subprocess.PIPE, text=True
        )
        ready = threading.Event()
        self._reader = threading.Thread(target=_read, args=(self._process, ready), daemon=True)
        self._reader.start()
        assert ready.wait(START_LIMIT_S), "nats-server did not start"

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Start again on the same port and store; kill it first if it runs."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Make it silent; its connections stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
        process.wait(START_LIMIT_S)
        assert self._reader is not None
        self._reader.join(START_LIMIT_S)


def _read(process: "subprocess.Popen[str]", ready: threading.Event) -> None:
    assert process.stderr is not None
    with process.stderr as lines:
        for line in lines:
            if "Server is ready" in line:
                ready.set()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _nats_server() -> str:
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    assert found, "install the extra `local`: nats-server is missing"
    return found


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A NATS server with JetStream, its store in tmp_path."""
    server = NatsServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def spare_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One more NATS server, not started yet."""
    server = NatsServer(tmp_path_factory.mktemp("spare"))
    yield server
    server.kill()


@pytest.fixture
async def bus_factory(nats_server: NatsServer) -> AsyncIterator[BusFactory]:
    """`await bus_factory("gateway")`: one more bus, of that service, on the same server."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(service: str = "test") -> Bus:
            nats = Nats(url=nats_server.url)
            return await stack.enter_async_context(
                connect(nats, service=service, instance=new_instance(service))
            )

        yield make


@pytest.fixture
async def bus(bus_factory: BusFactory) -> Bus:
    """A connected bus."""
    return await bus_factory()


@pytest.fixture
def kv(bus: Bus) -> Kv:
    """A KV client on `bus`."""
    return Kv(bus)
