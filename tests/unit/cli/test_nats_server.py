"""What the embedded NATS server is told."""

import re
from pathlib import Path

import pytest

from cortex_cli.errors import CliError
from cortex_cli.nats_server import NatsServer, default_store_dir, planned, prepared, render
from cortex_kit.settings import Nats


def parsed(text: str) -> dict[str, str]:
    """Read `key: value` lines; blocks are flattened, since no key of ours occurs twice."""
    return {key: value.strip('"') for key, value in re.findall(r"^\s*(\w+): (.+)$", text, re.MULTILINE)}


def test_the_server_gets_the_limits_the_bus_was_designed_with() -> None:
    conf = parsed(render(NatsServer("127.0.0.1", 4222, Path("/var/x"))))

    assert conf == {
        "server_name": "cortex",
        "listen": "127.0.0.1:4222",
        "max_connections": "4096",
        "max_payload": "8MB",
        "max_pending": "32MB",
        "write_deadline": "5s",
        "ping_interval": "10s",
        "ping_max": "2",
        "no_fast_producer_stall": "true",
        "store_dir": "/var/x",
        "sync_interval": "10s",
        "max_memory_store": "256MB",
        "max_file_store": "4GB",
    }


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("nats://127.0.0.1:4300", "127.0.0.1", 4300),
        ("nats://localhost", "localhost", 4222),
        ("127.0.0.1:4301", "127.0.0.1", 4301),
        ("nats://[::1]:4302", "::1", 4302),
        ("nats://127.0.0.1:4303, nats://10.0.0.9:4222", "127.0.0.1", 4303),
    ],
)
def test_it_listens_where_the_first_url_points(url: str, host: str, port: int) -> None:
    server = planned(Nats(url=url))

    assert (server.host, server.port) == (host, port)


@pytest.mark.parametrize(
    "url", ["nats://10.0.0.9:4222", "nats://0.0.0.0:4222", "nats://example.org", "nats://:1"]
)
def test_it_refuses_to_listen_beyond_this_machine(url: str) -> None:
    with pytest.raises(CliError, match="loopback only") as refused:
        planned(Nats(url=url))

    assert refused.value.exit_code == 2


def test_a_port_that_is_none_is_refused_by_its_url() -> None:
    with pytest.raises(CliError, match=r"nats://127\.0\.0\.1:99999"):
        planned(Nats(url="nats://127.0.0.1:99999"))


def test_it_stores_in_the_users_state_directory_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")

    assert default_store_dir() == Path("/var/state/cortex/nats")
    assert planned(Nats()).store_dir == Path("/var/state/cortex/nats")
    assert planned(Nats(store_dir="/srv/nats")).store_dir == Path("/srv/nats")


def test_a_store_serves_one_server_at_a_time(tmp_path: Path) -> None:
    server = NatsServer("127.0.0.1", 4222, tmp_path / "nats")

    with prepared(server):
        assert (tmp_path / "nats" / "nats.conf").read_text() == render(server)
        with pytest.raises(CliError, match="another `cortex up` uses"), prepared(server):
            pass

    with prepared(server):
        pass
