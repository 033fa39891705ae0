"""The life of a service process: settings, logs, bus; up, ready, drained, gone."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvloop

from cortex_kit import bus, ids, logs, settings, telemetry
from cortex_kit.kv import Kv
from cortex_kit.tether import tether_to_parent
from cortex_proto.catalogue import CatalogueError

log = structlog.get_logger()

PARENT_VARIABLE = "CORTEX_PARENT_PID"
"""Set by a supervisor: the service dies with that process, its parent."""
LEAVE_LIMIT_S = 30.0
"""A service that has not left by then is ended."""
EXIT_CRASHED = 1
EXIT_SETTINGS = 2
EXIT_LOST = 70


@dataclass(frozen=True, slots=True)
class Context:
    """What a service is handed to live on."""

    settings: settings.Settings
    bus: bus.Bus
    kv: Kv
    telemetry: telemetry.Telemetry
    config_dir: Path
    """Where the settings file lies: paths in it are relative to here."""


Run = Callable[[Context], AbstractAsyncContextManager[None]]


def serve(name: str, run: Run) -> None:
    """Be the service `name` until SIGTERM or SIGINT: enter `run`, wait, leave it, exit.

    Exits with 0 when told to stop, 2 when the settings cannot be used, 70 when the bus is lost for
    good. A second signal ends the process at once.
    """
    arguments = _arguments(name)
    try:
        options = settings.load(arguments.config)
        logs.setup(name, options.log)
        if parent_pid := os.environ.pop(PARENT_VARIABLE, None):
            tether_to_parent(int(parent_pid))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(_live(name, options, _config_dir(arguments.config), run))
    except (settings.SettingsError, CatalogueError) as error:
        sys.stderr.write(f"cortex {name}: {error}\n")
        code = EXIT_SETTINGS
    except Exception:
        log.exception("crashed")
        code = EXIT_CRASHED
    sys.exit(code)


def _arguments(name: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"cortex {name}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings; default: ./cortex.toml")
    return parser.parse_args()


def _config_dir(named: Path | None) -> Path:
    file = named or Path(os.environ.get(settings.FILE_VARIABLE) or settings.DEFAULT_FILE)
    return file.resolve().parent


async def _live(name: str, options: settings.Settings, config_dir: Path, run: Run) -> int:
    """Live, and return the exit code."""
    signals = _Signals()
    try:
        async with (
            bus.connect(options.nats, service=name, instance=ids.new_instance(name)) as the_bus,
            telemetry.reporting(the_bus) as the_telemetry,
            run(Context(options, the_bus, Kv(the_bus), the_telemetry, config_dir)),
        ):
            signals.started()
            log.info("ready", instance=the_bus.instance)
            lost = await _first(signals.stop, the_bus.lost)
            log.info("stopping", because=lost or "told to")
            return EXIT_LOST if lost else 0
    except asyncio.CancelledError:
        if signals.stop.is_set():  # told to stop while starting
            return 0
        raise


async def _first(stop: asyncio.Event, lost: asyncio.Future[str]) -> str | None:
    """Wait until told to stop, or until the bus is lost; return why it is."""
    lost.add_done_callback(lambda _: stop.set())
    await stop.wait()
    return lost.result() if lost.done() else None


class _Signals:
    """SIGTERM and SIGINT: the first asks to stop, the second ends the process at once."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self._starting = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._hear)

    def started(self) -> None:
        """From now on, a stop leaves the service in order instead of cancelling its start."""
        self._starting = None

    def _hear(self) -> None:
        if self.stop.is_set():
            os._exit(EXIT_CRASHED)
        self.stop.set()
        self._loop.call_later(LEAVE_LIMIT_S, self._give_up)
        if self._starting is not None:
            self._starting.cancel()

    def _give_up(self) -> None:
        log.error("did_not_leave", limit_s=LEAVE_LIMIT_S)
        os._exit(EXIT_CRASHED)
