"""Metrics and events, as JSON, so that `nats sub 'cortex.metrics.>'` reads well.

A service sends cumulative, numbered snapshots: a lost one is healed by the next, and the gap shows.
Events are for people and may be lost. Labels come from closed sets: never from what a client wrote.
"""

from collections.abc import Mapping

import msgspec

from cortex_proto.ids import InstanceId, ModelId, NodeId, RequestId


class Record(msgspec.Struct, frozen=True, tag_field="type", tag=True):
    """Base of everything under `cortex.metrics.>` and `cortex.event.>`."""


class Metric(msgspec.Struct, frozen=True):
    """One series family that cortex exports: its name, meaning, labels, and buckets if a histogram."""

    name: str
    help: str
    labels: tuple[str, ...]
    kind: str
    """counter, gauge or histogram."""
    buckets: tuple[float, ...] = ()


_REPLICA = ("model", "node")
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)
_FIRST_TOKEN_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120)
_TOKENS_PER_S = (1, 2.5, 5, 10, 15, 20, 30, 40, 60, 80, 120, 200, 400, 800)


def _counter(name: str, text: str, labels: tuple[str, ...] = _REPLICA) -> Metric:
    return Metric(name, text, labels, "counter")


def _gauge(name: str, text: str, labels: tuple[str, ...] = _REPLICA) -> Metric:
    return Metric(name, text, labels, "gauge")


def _histogram(name: str, text: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(name, text, _REPLICA, "histogram", buckets)


REQUESTS = _counter("cortex_requests_total", "Requests that ended, well or not.")
REQUEST_ERRORS = _counter(
    "cortex_request_errors_total", "Requests that ended in an error.", ("model", "node", "code")
)
REQUESTS_CANCELLED = _counter("cortex_requests_cancelled_total", "Requests whose client left before the end.")
PROMPT_TOKENS = _counter("cortex_prompt_tokens_total", "Tokens of prompts, cached ones included.")
OUTPUT_TOKENS = _counter("cortex_completion_tokens_total", "Tokens sampled.")
CACHED_TOKENS = _counter("cortex_cached_prompt_tokens_total", "Prompt tokens that were not computed again.")
COLD_STARTS = _counter("cortex_cold_starts_total", "Requests that waited for their model to load.")
FIRST_TOKEN_S = _histogram(
    "cortex_time_to_first_token_seconds",
    "From the request's arrival to its first content or reasoning token.",
    _FIRST_TOKEN_S,
)
TOKENS_PER_S = _histogram(
    "cortex_tokens_per_second", "Decode speed of one request, prefill not counted.", _TOKENS_PER_S
)
DURATION_S = _histogram(
    "cortex_request_duration_seconds", "From the request's arrival to its last byte.", _SECONDS
)
QUEUE_WAIT_S = _histogram(
    "cortex_queue_wait_seconds", "From the request's arrival to its dispatch.", _FIRST_TOKEN_S
)
LOADS = _counter("cortex_loads_total", "Models loaded.")
LOAD_FAILURES = _counter("cortex_load_failures_total", "Loads that failed or were refused.")
LOAD_S = _histogram("cortex_load_seconds", "From the decision to load to ready.", _SECONDS)
UNLOADS = _counter("cortex_unloads_total", "Models unloaded, for whatever reason.")
EVICTIONS = _counter("cortex_evictions_total", "Models told to leave to make room for another.")
RUNNING = _gauge("cortex_model_in_flight", "Requests in the batch.")
WAITING = _gauge("cortex_model_queue_depth", "Requests accepted and not yet in the batch.")
MODEL_BYTES = _gauge("cortex_model_memory_bytes", "Memory that the ledger holds for a model.")
DEVICE_TOTAL_BYTES = _gauge(
    "cortex_device_memory_total_bytes", "Memory that cortex may use.", ("node", "device")
)
DEVICE_FREE_BYTES = _gauge(
    "cortex_device_memory_free_bytes", "Memory that the ledger has left.", ("node", "device")
)
NODES_UP = _gauge("cortex_nodes_up", "Nodes heard of lately.", ())
SNAPSHOTS_LOST = _counter(
    "cortex_snapshots_lost_total", "Snapshots that did not reach metrics; the next one healed it.", ()
)
SNAPSHOTS_REFUSED = _counter(
    "cortex_snapshots_refused_total", "Snapshots not believed, in whole or in part.", ()
)

METRICS: tuple[Metric, ...] = (
    REQUESTS, REQUEST_ERRORS, REQUESTS_CANCELLED, PROMPT_TOKENS, OUTPUT_TOKENS, CACHED_TOKENS, COLD_STARTS,
    FIRST_TOKEN_S, TOKENS_PER_S, DURATION_S, QUEUE_WAIT_S, LOADS, LOAD_FAILURES, LOAD_S, UNLOADS, EVICTIONS,
    RUNNING, WAITING, MODEL_BYTES, DEVICE_TOTAL_BYTES, DEVICE_FREE_BYTES, NODES_UP,
    SNAPSHOTS_LOST, SNAPSHOTS_REFUSED,
)  # fmt: skip
"""All that cortex exports; a snapshot with anything else is not believed."""


class Value(msgspec.Struct, frozen=True, omit_defaults=True):
    """A counter or gauge with its labels."""

    name: str
    value: float
    labels: Mapping[str, str] = {}


class Histogram(msgspec.Struct, frozen=True, omit_defaults=True):
    """Observations so far: `counts[i]` of them fell into bucket i alone, the last is above all bounds."""

    name: str
    counts: tuple[int, ...]
    sum: float
    labels: Mapping[str, str] = {}


class Snapshot(Record, frozen=True):
    """All series of one process since its start. Newer `seq` replaces older."""

    service: str
    instance: InstanceId
    seq: int
    values: tuple[Value, ...]
    histograms: tuple[Histogram, ...]


class RequestDone(Record, frozen=True):
    """The terminal record of one request: there is exactly one, however it ended."""

    request: RequestId
    model: ModelId
    node: NodeId | None
    dialect: str
    stream: bool
    outcome: str
    """stop, length, tool_calls, cancelled, or the code of an error."""
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    cold_start: bool
    queue_s: float
    ttft_s: float | None
    tokens_per_s: float | None
    latency_s: float
    attempts: int
    at: str
    """When it ended, RFC 3339."""


class ModelLoaded(Record, frozen=True):
    """A model is ready on a node."""

    model: ModelId
    node: NodeId
    seconds: float
    bytes: int
    at: str


class ModelUnloaded(Record, frozen=True):
    """A model has left a node."""

    model: ModelId
    node: NodeId
    at: str


class LoadFailed(Record, frozen=True):
    """A model did not load."""

    model: ModelId
    node: NodeId
    because: str
    at: str


class Decided(Record, frozen=True):
    """The scheduler changed what should run where."""

    model: ModelId
    node: NodeId
    verb: str
    """place or evict."""
    because: str
    epoch: int
    at: str


Event = RequestDone | ModelLoaded | ModelUnloaded | LoadFailed | Decided
