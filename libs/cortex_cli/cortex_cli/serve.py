"""`cortex serve`: one service in this process, or the control plane as processes."""

import argparse
import importlib
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

from cortex_cli.errors import CliError


def run(options: argparse.Namespace) -> int:
    """Run the service the command line names, or all but NATS and the neuron."""
    if options.service is None:
        # Imported here, because a service of its own needs neither httpx nor rich.
        code: int = importlib.import_module("cortex_cli.up").run_control_plane(options)
        return code
    return _become(options.service, options.config)


def _become(service: str, config: Path | None) -> int:
    """Run the service's own `__main__` here, so that the process keeps the name `cortex serve ...`.

    Raises:
        CliError: a package that it needs is not installed.
    """
    module = f"cortex_{service}"
    if find_spec(module) is None:
        raise CliError(f"this installation has no {module}", exit_code=2)
    sys.argv = [f"cortex serve {service}", *(("--config", str(config)) if config else ())]
    try:
        runpy.run_module(module, run_name="__main__")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("cortex_"):
            raise
        raise CliError(
            f"{service} needs the package {error.name}: pip install 'cortex[{service}]'", exit_code=2
        ) from error
    return 0
