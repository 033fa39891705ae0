"""An answer, shown in the terminal as it comes."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from rich.console import Console

from cortex_cli import api


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, and how fast it came."""

    text: str
    usage: api.Usage
    ttft_s: float
    tokens_per_s: float
    """After the first token; 0 if there was no second."""


async def show_answer(http: httpx.AsyncClient, body: Mapping[str, object]) -> Answer:
    """Ask; write the answer on standard output as it comes; while the model loads, say so.

    Raises:
        CliError: the request was refused, or the answer did not end well.
    """
    started_s = time.monotonic()
    pieces: list[str] = []
    times_s: list[float] = []
    usage = api.Usage(0, 0)
    with Console(stderr=True, markup=False).status("waiting") as spinner:
        async for happening in api.chat(http, body):
            match happening:
                case api.Waiting(text):
                    spinner.update(f"{text or 'waiting'} ({time.monotonic() - started_s:.0f} s)")
                case api.Piece(text):
                    spinner.stop()
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
