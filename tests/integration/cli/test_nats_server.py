"""The embedded server, as the real nats-server reads it."""

import subprocess
from pathlib import Path

import pytest

from cortex_cli.nats_server import CONF_NAME, NatsServer, binary, prepared


@pytest.mark.parametrize("name", ["plain", "with space", 'quo"te', "\u00fcml\u00e4ut"])
def test_the_server_accepts_its_configuration_wherever_the_store_is(tmp_path: Path, name: str) -> None:
    server = NatsServer("127.0.0.1", 4222, tmp_path / name)

    with prepared(server):
        conf = server.store_dir / CONF_NAME
        checked = subprocess.run(
            [binary(), "-t", "-c", conf], capture_output=True, text=True, timeout=30, check=False
        )

    assert checked.returncode == 0, checked.stderr
