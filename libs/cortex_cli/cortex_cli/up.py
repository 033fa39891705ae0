"""`cortex up`: everything on this machine, kept running until it is told to stop."""

import argparse
import asyncio
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from cortex_cli import nats_server
from cortex_cli.connection import cli_bus, url_of
from cortex_cli.errors import CliError
from cortex_cli.journal import Journal
from cortex_cli.loads import show_loads
from cortex_cli.nats_server import NatsServer
from cortex_cli.polling import until
from cortex_cli.ports import Address, address, refuse_if_taken
from cortex_cli.supervisor import Program, Supervisor, supervising
from cortex_kit.bus import Bus
from cortex_kit.settings import Settings, load
from cortex_proto import subjects
from cortex_proto.errors import BusError
from cortex_proto.placement import AskStatus

CONTROL_PLANE = ("metrics", "evictor", "scheduler", "gateway")
ALL = ("metrics", "evictor", "scheduler", "neuron", "gateway")
"""In the order they start; they stop in the opposite one, so that requests end before what serves them."""
NATS_START_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class System:
    """What to keep up."""

    settings: Settings
    config: Path | None
    services: tuple[str, ...]
    embeds_nats: bool
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def addresses(self) -> dict[str, str]:
        """Where each of the services listens that do."""
        every = {part: getattr(self.settings, part).listen for part in ("gateway", "metrics", "neuron")}
        return {part: listen for part, listen in every.items() if part in self.services}


def run(options: argparse.Namespace) -> int:
    """Run everything, until Ctrl-C."""
    settings = load(options.config)
    environment = {}
    if options.models is not None:
        if not options.models.exists():
            raise CliError(f"--models {options.models}: no such file", exit_code=2)
        environment["CORTEX_SCHEDULER__MODELS_CONFIG"] = str(options.models.absolute())
    return keep_up(System(settings, options.config, ALL, settings.nats.embedded, environment))


def run_control_plane(options: argparse.Namespace) -> int:
    """Run all but NATS and the neuron, until Ctrl-C."""
    return keep_up(System(load(options.config), options.config, CONTROL_PLANE, embeds_nats=False))


def keep_up(system: System) -> int:
    """Keep the system's programs running until SIGINT or SIGTERM; then drain them.

    Raises:
        CliError: something cannot run as it is configured.
    """
    with ExitStack() as stack:
        server = nats_server.planned(system.settings.nats) if system.embeds_nats else None
        _refuse_taken_ports(system, server)
        if server is not None:
            stack.enter_context(nats_server.prepared(server))
        asyncio.run(_keep_up(system, server))
    return 0


async def _keep_up(system: System, server: NatsServer | None) -> None:
    log_format = system.settings.log.format
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    journal = Journal(as_json=as_json)
    environment = {
        **os.environ,
        **system.environment,
        "CORTEX_PARENT_PID": str(os.getpid()),
        "CORTEX_LOG__FORMAT": "json" if as_json else "text",
    }
    async with supervising(environment, journal) as supervisor:
        _stop_on_signal(supervisor, journal)
        work = asyncio.create_task(_run(system, server, supervisor, journal))
        await asyncio.wait({work, supervisor.end}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        work.cancel()
        await asyncio.wait({work})
        supervisor.end.result()


def _stop_on_signal(supervisor: Supervisor, journal: Journal) -> None:
    """Let the first signal end the system in good order, and a second one at once."""

    def stop() -> None:
        if supervisor.end.done():
            supervisor.kill()
        else:
            journal.say("stopping", hint="once more to stop at once")
            supervisor.end.set_result(None)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop)


async def _run(system: System, server: NatsServer | None, supervisor: Supervisor, journal: Journal) -> None:
    """Start everything, then tell people how it goes, until cancelled."""
    await _start(system, server, supervisor)
    async with cli_bus(system.settings.nats) as bus:
        await _until_it_serves(system, bus)
        journal.announce(_places(system))
        if journal.console.is_terminal:
            await show_loads(bus, journal.console)
        await asyncio.Event().wait()


async def _start(system: System, server: NatsServer | None, supervisor: Supervisor) -> None:
    if server is not None:
        supervisor.start(Program("nats", server.command, fatal_codes=frozenset(), hidden="[INF]"))
        await _accepting(Address(server.host, server.port))
    config = ("--config", str(system.config)) if system.config else ()
    for service in system.services:
        supervisor.start(Program(service, (*cortex_command(), "serve", service, *config)))


def cortex_command() -> tuple[str, ...]:
    """Return how to call ourselves: the console script where there is one, for legible process lists."""
    script = Path(sys.executable).with_name("cortex")
    return (sys.executable, str(script)) if script.exists() else (sys.executable, "-m", "cortex_cli.main")


async def _accepting(wanted: Address) -> None:
    try:
        async with asyncio.timeout(NATS_START_LIMIT_S):
            await until(lambda: _accepts(wanted))
    except TimeoutError as error:
        raise CliError(
            f"nats-server does not listen on {wanted.host}:{wanted.port}; its lines say why"
        ) from error


async def _accepts(wanted: Address) -> bool:
    try:
        _, writer = await asyncio.open_connection(*wanted)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def _until_it_serves(system: System, bus: Bus) -> None:
    """Wait until the gateway is ready and, if a neuron is ours, the scheduler knows a node."""
    url = url_of(system.settings.gateway.listen)
    async with httpx.AsyncClient(trust_env=False, timeout=1.0) as http:
        await until(lambda: _answers(http, f"{url}/readyz"))
    if "neuron" in system.services:
        await until(lambda: _has_node(bus))


def _places(system: System) -> dict[str, str]:
    url = url_of(system.settings.gateway.listen)
    others = {part: url_of(listen) for part, listen in system.addresses.items() if part != "gateway"}
    return {"api": f"{url}/v1", "docs": f"{url}/docs", **others, "nats": system.settings.nats.url}


async def _has_node(bus: Bus) -> bool:
    try:
        return bool((await bus.ask(subjects.STATUS, AskStatus(), timeout_s=1.0)).nodes)
    except BusError:
        return False


async def _answers(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url)).is_success
    except httpx.HTTPError:
        return False


def _refuse_taken_ports(system: System, server: NatsServer | None) -> None:
    for part, listen in system.addresses.items():
        setting = f"[{part}] listen (CORTEX_{part.upper()}__LISTEN)"
        refuse_if_taken(address(listen), who=f"the {part}", setting=setting)
    if server is not None:
        setting = (
            "[nats] url (CORTEX_NATS__URL), or set [nats] embedded = false to use the server that is there"
        )
        refuse_if_taken(Address(server.host, server.port), who="the embedded NATS server", setting=setting)
