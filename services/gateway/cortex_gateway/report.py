"""Tells the world that a request has ended: its record as an event, and the metrics it adds to."""

from typing import get_args

from cortex_gateway.account import CANCELLED
from cortex_kit.telemetry import Telemetry
from cortex_proto.generation import FinishReason
from cortex_proto.telemetry import (
    CACHED_TOKENS,
    COLD_STARTS,
    DURATION_S,
    FIRST_TOKEN_S,
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    QUEUE_WAIT_S,
    REQUEST_ERRORS,
    REQUESTS,
    REQUESTS_CANCELLED,
    TOKENS_PER_S,
    Metric,
    RequestDone,
)

_WELL = get_args(FinishReason)


async def report(telemetry: Telemetry, done: RequestDone) -> None:
    """Count the request and send its record."""
    replica: dict[str, str] = {"model": done.model, "node": done.node or ""}
    for metric, by in _counts(done).items():
        if by:
            telemetry.count(metric, float(by), **replica)
    if done.outcome not in (*_WELL, CANCELLED):
        telemetry.count(REQUEST_ERRORS, 1.0, code=done.outcome, **replica)
    for metric, value in _observations(done).items():
        if value is not None:
            telemetry.observe(metric, value, **replica)
    await telemetry.event(done)


def _counts(done: RequestDone) -> dict[Metric, int]:
    return {
        REQUESTS: 1,
        REQUESTS_CANCELLED: int(done.outcome == CANCELLED),
        COLD_STARTS: int(done.cold_start),
        PROMPT_TOKENS: done.prompt_tokens,
        OUTPUT_TOKENS: done.output_tokens,
        CACHED_TOKENS: done.cached_tokens,
    }


def _observations(done: RequestDone) -> dict[Metric, float | None]:
    return {
        QUEUE_WAIT_S: done.queue_s if done.node else None,
        FIRST_TOKEN_S: done.ttft_s,
        TOKENS_PER_S: done.tokens_per_s,
        DURATION_S: done.latency_s,
    }
