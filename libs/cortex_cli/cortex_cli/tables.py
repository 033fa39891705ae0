"""Tables and JSON on standard output."""

from collections.abc import Iterable, Sequence

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

MIB = 1024 * 1024


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; where standard output is no terminal, as wide as it needs to be."""
    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = 240
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_json(value: object) -> None:
    """Print `value` as indented JSON."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def mib(num_bytes: int) -> str:
    """Write bytes for people."""
    return f"{num_bytes / MIB:,.0f} MiB"
