"""`cortex bench`: how fast the API answers, over a sweep of concurrencies.

All requests produce the same number of tokens (the vendor field `ignore_eos`). The client shares
the machine with what it measures, so it does as little as it can for each piece of text.
"""

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import msgspec
from rich.console import Console
from rich.progress import Progress

from cortex_cli import api, bench_report
from cortex_cli.bench_report import Level, Report, Sample
from cortex_cli.chat import first_model
from cortex_cli.connection import endpoint
from cortex_cli.errors import CliError
from cortex_cli.tables import print_json, print_table

_WORDS = (
    "the",
    "sea",
    "is",
    "wide",
    "and",
    "old",
    "ships",
    "go",
    "far",
    "from",
    "home",
    "in",
    "all",
    "winds",
)
"""Common words are one token each for nearly every tokenizer."""
_TEMPLATE_TOKENS = 20
"""About what a chat template adds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What each level does."""

    model: str
    max_tokens: int
    prompt_tokens: int
    requests: int | None
    """At least one for each stream; None: twice the concurrency, at least 4."""
    duration_s: float | None

    def body(self, number: int) -> dict[str, object]:
        """Write request `number`; no two have the same beginning, so that no cache helps."""
        words = itertools.islice(itertools.cycle(_WORDS), max(1, self.prompt_tokens - _TEMPLATE_TOKENS))
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": f"{number} {' '.join(words)}"}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }


def run(options: argparse.Namespace) -> int:
    """Measure, print the table, and fail if any request did."""
    report = asyncio.run(_measure(endpoint(options), options))
    to_stdout = options.json is not None and str(options.json) == "-"
    if to_stdout:
        print_json(report)
    else:
        title = f"{report.model}, {report.max_tokens} tokens out"
        print_table(title, bench_report.HEADINGS, bench_report.rows(report))
    if options.json is not None and not to_stdout:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    if report.error is not None:
        raise CliError(
            f"{sum(one.errors for one in report.levels)} requests failed, the first: {report.error}"
        )
    return 0


async def _measure(url: str, options: argparse.Namespace) -> Report:
    async with api.client(url) as http:
        plan = Plan(
            model=options.model or await first_model(http),
            max_tokens=options.max_tokens,
            prompt_tokens=options.prompt_tokens,
            requests=options.requests_per_level,
            duration_s=options.duration,
        )
        return await sweep(http, plan, options.concurrency)


async def sweep(http: httpx.AsyncClient, plan: Plan, concurrencies: tuple[int, ...]) -> Report:
    """Warm up with one request, then measure one level after the other.

    Raises:
        CliError: the warm-up failed.
    """
    numbers = itertools.count()
    levels: list[Level] = []
    error: str | None = None
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("warming up", total=len(concurrencies))
        warm = await _sample(http, plan.body(next(numbers)))
        if warm.error is not None:
            raise CliError(warm.error)
        for concurrency in concurrencies:
            progress.update(bar, description=f"{concurrency} streams")
            samples, duration_s = await _level(http, plan, concurrency, numbers)
            levels.append(bench_report.level(concurrency, samples, duration_s))
            error = error or next((sample.error for sample in samples if sample.error), None)
            progress.advance(bar)
    return Report(plan.model, plan.max_tokens, tuple(levels), error)


async def _level(
    http: httpx.AsyncClient, plan: Plan, concurrency: int, numbers: Iterator[int]
) -> tuple[list[Sample], float]:
    """Keep `concurrency` requests going until all have been made, or the time is up."""
    started_s = time.perf_counter()
    samples: list[Sample] = []
    left = iter(range(_num_requests(plan, concurrency)))

    async def stream() -> None:
        for _ in left:
            if plan.duration_s and time.perf_counter() - started_s >= plan.duration_s:
                return
            samples.append(await _sample(http, plan.body(next(numbers))))

    await asyncio.gather(*(stream() for _ in range(concurrency)))
    return samples, time.perf_counter() - started_s


def _num_requests(plan: Plan, concurrency: int) -> int:
    if plan.duration_s is not None:
        return sys.maxsize
    return max(plan.requests or max(4, 2 * concurrency), concurrency)


async def _sample(http: httpx.AsyncClient, body: dict[str, object]) -> Sample:
    started_s = time.perf_counter()
    texts_s: list[float] = []
    usage: api.Usage | None = None
    error: str | None = None
    try:
        async for happening in api.chat(http, body):
            match happening:
                case api.Piece():
                    texts_s.append(time.perf_counter())
                case api.Ended(usage=usage):
                    pass
    except (CliError, httpx.HTTPError) as failure:
        error = str(failure) or type(failure).__name__
    if usage is None:
        return Sample(started_s, tuple(texts_s), 0, 0, error or "the answer ended without its usage")
    return Sample(started_s, tuple(texts_s), usage.prompt_tokens, usage.completion_tokens, error)
