"""An answer, shown in the terminal as it comes."""

import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cortex_cli import api


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, and how fast it came."""

    text: str
    usage: api.Usage
    ttft_s: float
    tokens_per_s: float
    """After the first token; 0 if there was no second."""


class WaitingBar:
    """A line on the terminal while nothing has come yet; nothing at all where there is no terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("waiting", total=None)

    def __enter__(self) -> "WaitingBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()

    def show(self, text: str) -> None:
        """Show the gateway's words, and as a bar the percentage that they may hold."""
        percent = re.search(r"(\d+) %", text)
        total, completed = (100, int(percent[1])) if percent else (None, None)
        self._progress.update(self._task, description=escape(text), total=total, completed=completed)

    def hide(self) -> None:
        """Take the line away, for good."""
        self._progress.stop()


async def show_answer(http: httpx.AsyncClient, body: Mapping[str, object]) -> Answer:
    """Ask; write the answer on standard output as it comes; while the model loads, say so.

    Raises:
        CliError: the request was refused, or the answer did not end well.
    """
    started_s = time.monotonic()
    pieces: list[str] = []
    times_s: list[float] = []
    usage = api.Usage(0, 0)
    with WaitingBar() as bar:
        async for happening in api.chat(http, body):
            match happening:
                case api.Waiting(text):
                    bar.show(text)
                case api.Piece(text):
                    bar.hide()
                    pieces.append(text)
                    times_s.append(time.monotonic())
                    sys.stdout.write(text)
                    sys.stdout.flush()
                case api.Ended(usage=usage):
                    pass
    sys.stdout.write("\n")
    if not times_s:
        return Answer("", usage, 0.0, 0.0)
    span_s = times_s[-1] - times_s[0]
    rate = (usage.completion_tokens - 1) / span_s if span_s > 0 else 0.0
    return Answer("".join(pieces), usage, times_s[0] - started_s, rate)
