"""Addresses to listen on."""

import socket

import pytest

from cortex_cli.errors import CliError
from cortex_cli.ports import Address, address, free_ports, refuse_if_taken


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [("127.0.0.1:31313", "127.0.0.1", 31313), ("[::1]:80", "::1", 80), ("0.0.0.0:0", "0.0.0.0", 0)],
)
def test_a_host_and_a_port_are_read(listen: str, host: str, port: int) -> None:
    assert address(listen) == Address(host, port)


@pytest.mark.parametrize("listen", ["31313", ":31313", "127.0.0.1:", "127.0.0.1:http", ""])
def test_anything_else_is_refused(listen: str) -> None:
    with pytest.raises(CliError, match="no host:port"):
        address(listen)


def test_free_ports_differ_and_can_be_listened_on() -> None:
    ports = free_ports(5)

    assert len(set(ports)) == 5
    for port in ports:
        refuse_if_taken(Address("127.0.0.1", port), who="nobody", setting="nothing")


def test_a_taken_port_is_refused_with_its_number_and_the_setting_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port: int = other.getsockname()[1]

        with pytest.raises(CliError) as refused:
            refuse_if_taken(Address("127.0.0.1", port), who="the gateway", setting="[gateway] listen")

    assert f"127.0.0.1:{port}" in str(refused.value)
    assert "the gateway" in str(refused.value)
    assert "[gateway] listen" in str(refused.value)
    assert "\n" not in str(refused.value)
