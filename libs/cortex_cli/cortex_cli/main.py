"""The command `cortex`: reads the command line and runs one sub-command.

Each sub-command `x` is the module `cortex_cli.x` with a function `run(options) -> exit code`, imported
only when it is called, so that `cortex serve gateway` does not pay for `cortex bench`.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from cortex_cli.errors import CliError
from cortex_kit.settings import SettingsError

SERVICES = ("gateway", "scheduler", "evictor", "metrics", "neuron")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 well, 1 failed, 2 cannot work as it was asked."""
    options = _parser().parse_args(arguments)
    command = importlib.import_module(f"cortex_cli.{options.command}")
    try:
        code: int = command.run(options)
    except CliError as error:
        return _complain(error, error.exit_code)
    except SettingsError as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return code


def _complain(error: Exception, code: int) -> int:
    print(f"cortex: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cortex", description="One OpenAI-compatible endpoint in front of a fleet of GPU machines."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _running_it(commands)
    _asking_it(commands)
    _measuring_it(commands)
    return parser


_Commands = argparse._SubParsersAction


def _running_it(commands: "_Commands[argparse.ArgumentParser]") -> None:
    up = _command(commands, "up", "run everything on this machine: NATS, all services, one neuron")
    _config(up)
    up.add_argument("--models", type=Path, metavar="FILE", help="the catalogue, instead of models.toml")
    serve = _command(commands, "serve", "run one service, or without SERVICE all but NATS and the neuron")
    serve.add_argument("service", nargs="?", choices=SERVICES, metavar="SERVICE", help=", ".join(SERVICES))
    _config(serve)
    demo = _command(commands, "demo", "start everything on free ports, ask one question, stop again")
    demo.add_argument("--prompt", default="What is the capital of France?", help="default: %(default)s")
    demo.add_argument("--max-tokens", type=_positive, default=64, metavar="N", help="default: %(default)s")


def _asking_it(commands: "_Commands[argparse.ArgumentParser]") -> None:
    status = _command(commands, "status", "show nodes, devices and models, and why they are where they are")
    _nats(status)
    _json_switch(status)
    models = _command(commands, "models", "list the models")
    _endpoint(models)
    _json_switch(models)
    chat = _command(commands, "chat", "talk to a model; without PROMPT, turn by turn")
    chat.add_argument("prompt", nargs="?", metavar="PROMPT")
    chat.add_argument("--model", metavar="ID", help="default: the first of `cortex models`")
    chat.add_argument("--system", metavar="TEXT", help="what the model is told before anything else")
    chat.add_argument(
        "--max-tokens", type=_positive, metavar="N", help="default: as many as the context leaves"
    )
    chat.add_argument("--temperature", type=float, metavar="T", help="0 is greedy; default: the model's own")
    _endpoint(chat)
    tap = _command(commands, "tap", "print what travels on the bus, a line a message")
    tap.add_argument("subject", metavar="SUBJECT", help="e.g. 'cortex.metrics.>'")
    tap.add_argument("--count", type=_positive, metavar="N", help="stop after N messages")
    tap.add_argument("--raw", action="store_true", help="print payloads as they are, and no subject")
    _nats(tap)


def _measuring_it(commands: "_Commands[argparse.ArgumentParser]") -> None:
    bench = _command(commands, "bench", "measure TTFT, token gaps and tok/s over a sweep of concurrencies")
    bench.add_argument("--model", metavar="ID", help="default: the first of `cortex models`")
    bench.add_argument(
        "--concurrency", type=_levels, default=(1, 2, 4, 8), metavar="N,N,...", help="default: 1,2,4,8"
    )
    how_long = bench.add_mutually_exclusive_group()
    how_long.add_argument(
        "--requests-per-level", type=_positive, metavar="N", help="default: 2 for each stream, at least 4"
    )
    how_long.add_argument("--duration", type=float, metavar="S", help="start requests for so many seconds")
    bench.add_argument(
        "--prompt-tokens", type=_positive, default=64, metavar="N", help="about so many; default: %(default)s"
    )
    bench.add_argument("--max-tokens", type=_positive, default=64, metavar="N", help="default: %(default)s")
    bench.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the report there; - for standard output"
    )
    _endpoint(bench)


def _command(commands: "_Commands[argparse.ArgumentParser]", name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings; default: $CORTEX_CONFIG, else ./cortex.toml"
    )


def _endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--endpoint", metavar="URL", help="of the API; default: http://<[gateway] listen>")
    _config(parser)


def _nats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nats", metavar="URL", help="of the bus; default: [nats] url")
    _config(parser)


def _json_switch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _levels(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
