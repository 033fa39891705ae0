"""Addresses to listen on: taken apart, found free, refused if taken."""

import socket
from contextlib import ExitStack
from typing import NamedTuple

from cortex_cli.errors import CliError


class Address(NamedTuple):
    """A host and a port."""

    host: str
    port: int


def address(listen: str) -> Address:
    """Read "host:port"; an IPv6 host may stand in brackets.

    Raises:
        CliError: it is nothing of the kind.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal():
        raise CliError(f"{listen!r} is no host:port to listen on", exit_code=2)
    return Address(host.strip("[]"), int(port))


def free_ports(count: int) -> list[int]:
    """Find ports of the loopback that nobody listens on at this moment, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def refuse_if_taken(wanted: Address, *, who: str, setting: str) -> None:
    """Do nothing if `wanted` can be listened on.

    Raises:
        CliError: it cannot; the text names the port, who wanted it, and the setting to change.
    """
    family = socket.AF_INET6 if ":" in wanted.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(wanted)
        except OSError as error:
            raise CliError(
                f"{wanted.host}:{wanted.port}, where {who} would listen: {error.strerror}. "
                f"Is another cortex running? Stop it, or change {setting}",
                exit_code=2,
            ) from error
