"""What `cortex up` writes on standard error: its children's lines, and its own."""

import sys
from datetime import UTC, datetime

import msgspec
from rich.console import Console
from rich.text import Text

COLOURS = {
    "nats": "blue",
    "scheduler": "magenta",
    "evictor": "yellow",
    "metrics": "cyan",
    "gateway": "green",
    "neuron": "bright_blue",
    "up": "bold",
}


class Journal:
    """One stream of lines from many programs: as JSON, or as text with the program's name in front."""

    def __init__(self, *, as_json: bool) -> None:
        self.console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
        self._as_json = as_json

    def pass_on(self, name: str, line: str) -> None:
        """Write a line of the child `name`; one that is JSON already says who it is from."""
        if line.startswith("{"):
            self._write(line)
        elif self._as_json:
            self._write_json(name, line, {})
        else:
            self._write_text(name, line)

    def say(self, event: str, **fields: object) -> None:
        """Write a line of our own."""
        if self._as_json:
            self._write_json("up", event, fields)
        else:
            detail = " ".join(f"{key}={value}" for key, value in fields.items())
            self._write_text("up", f"{event} {detail}".rstrip())

    def announce(self, places: dict[str, str]) -> None:
        """Say that the system serves, and where everything is."""
        if self._as_json:
            self._write_json("up", "up", dict(places))
            return
        self.console.print("cortex is up; Ctrl-C stops it", style="bold")
        for name, place in places.items():
            self.console.print(f"  {name:8} {place}", markup=False)

    def _write_json(self, name: str, event: str, fields: dict[str, object]) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"timestamp": at, "service": name, "event": event, **fields}
        self._write(msgspec.json.encode(record).decode())

    def _write(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def _write_text(self, name: str, line: str) -> None:
        label = Text(f"{name:>9} | ", style=COLOURS.get(name, ""))
        self.console.print(label + Text.from_ansi(line))
