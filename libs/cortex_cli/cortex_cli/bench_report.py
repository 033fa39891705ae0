"""What a benchmark says: samples in, percentiles and rates out. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as the client saw it; times are seconds on one clock."""

    started_s: float
    texts_s: tuple[float, ...]
    """When each piece of text arrived."""
    prompt_tokens: int
    output_tokens: int
    error: str | None = None


class Quantiles(msgspec.Struct, frozen=True):
    """The middle and the tail; None if nothing was observed."""

    p50: float | None
    p99: float | None


class Level(msgspec.Struct, frozen=True):
    """One concurrency of the sweep."""

    concurrency: int
    requests: int
    errors: int
    duration_s: float
    prompt_tokens: int
    """Of all requests that went well, as are the next."""
    output_tokens: int
    ttft_s: Quantiles
    inter_token_s: Quantiles
    stream_tokens_per_s: Quantiles
    """Decode speed of one stream: from its first piece of text to its last."""
    tokens_per_s: float
    """Of all streams together, over the whole level, prefill included."""


class Report(msgspec.Struct, frozen=True):
    """A whole sweep."""

    model: str
    max_tokens: int
    levels: tuple[Level, ...]
    error: str | None = None
    """The first one met, if any."""


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least `share` of `values` do not exceed (nearest rank)."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def level(concurrency: int, samples: Sequence[Sample], duration_s: float) -> Level:
    """Sum up one concurrency; requests that failed count as errors and nowhere else."""
    good = [sample for sample in samples if sample.error is None]
    output_tokens = sum(sample.output_tokens for sample in good)
    return Level(
        concurrency=concurrency,
        requests=len(samples),
        errors=len(samples) - len(good),
        duration_s=duration_s,
        prompt_tokens=sum(sample.prompt_tokens for sample in good),
        output_tokens=output_tokens,
        ttft_s=_quantiles([sample.texts_s[0] - sample.started_s for sample in good if sample.texts_s]),
        inter_token_s=_quantiles([b - a for sample in good for a, b in pairwise(sample.texts_s)]),
        stream_tokens_per_s=_quantiles(
            [rate for sample in good if (rate := stream_rate(sample)) is not None]
        ),
        tokens_per_s=output_tokens / duration_s if duration_s > 0 else 0.0,
    )


def stream_rate(sample: Sample) -> float | None:
    """Tokens per second after the first; None if there was no second."""
    span_s = sample.texts_s[-1] - sample.texts_s[0] if sample.texts_s else 0.0
    return (sample.output_tokens - 1) / span_s if span_s > 0 else None


HEADINGS = (
    "streams", "requests", "errors", "TTFT p50 ms", "p99", "token gap p50 ms", "p99",
    "tok/s per stream", "tok/s in all", "gain",
)  # fmt: skip


def rows(report: Report) -> list[tuple[str, ...]]:
    """Write the levels as a table under `HEADINGS`; the gain is over the first level."""
    return [_row(one, report.levels[0]) for one in report.levels]


def _row(one: Level, first: Level) -> tuple[str, ...]:
    gain = one.tokens_per_s / first.tokens_per_s if first.tokens_per_s > 0 else None
    return (
        str(one.concurrency),
        str(one.requests),
        str(one.errors),
        _number(one.ttft_s.p50, 1000, 0),
        _number(one.ttft_s.p99, 1000, 0),
        _number(one.inter_token_s.p50, 1000, 1),
        _number(one.inter_token_s.p99, 1000, 1),
        _number(one.stream_tokens_per_s.p50, 1, 1),
        _number(one.tokens_per_s, 1, 1),
        _number(gain, 1, 2),
    )


def _number(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


def _quantiles(values: Sequence[float]) -> Quantiles:
    return Quantiles(quantile(values, 0.5), quantile(values, 0.99))
