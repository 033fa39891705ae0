"""Counters, gauges and histograms of one process, sent as cumulative snapshots; and single events."""

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import structlog

from cortex_kit.bus import Bus
from cortex_kit.tasks import end
from cortex_proto.errors import CortexError
from cortex_proto.subjects import metrics
from cortex_proto.telemetry import (
    METRICS,
    Decided,
    Event,
    Histogram,
    LoadFailed,
    Metric,
    ModelLoaded,
    ModelUnloaded,
    RequestDone,
    Snapshot,
    Value,
)

log = structlog.get_logger()

LEAST_GAP_S = 1.0
"""Between two snapshots, however much changes."""
LONGEST_GAP_S = 5.0
"""Between two snapshots, though nothing changes."""

_Labels = tuple[tuple[str, str], ...]
_Series = tuple[str, _Labels]
_KINDS = {
    RequestDone: "request",
    ModelLoaded: "loaded",
    ModelUnloaded: "unloaded",
    LoadFailed: "load_failed",
    Decided: "decided",
}


class Telemetry:
    """What one process has counted since its start."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._values: dict[_Series, float] = {}
        self._counts: dict[_Series, list[int]] = {}
        self._sums: dict[_Series, float] = {}
        self._changed = asyncio.Event()
        self._seq = 0

    def count(self, metric: Metric, by: float = 1.0, /, **labels: str) -> None:
        """Add to a counter."""
        series = self._series(metric, "counter", labels)
        self._values[series] = self._values.get(series, 0.0) + by

    def gauge(self, metric: Metric, value: float, /, **labels: str) -> None:
        """Set a gauge."""
        self._values[self._series(metric, "gauge", labels)] = value

    def observe(self, metric: Metric, value: float, /, **labels: str) -> None:
        """Add one observation to a histogram; a value equal to a bound belongs below it."""
        series = self._series(metric, "histogram", labels)
        counts = self._counts.setdefault(series, [0] * (len(metric.buckets) + 1))
        counts[bisect_left(metric.buckets, value)] += 1
        self._sums[series] = self._sums.get(series, 0.0) + value

    def forget(self, metric: Metric, /, **labels: str) -> None:
        """Drop a series whose object is gone, such as the gauges of a model that has left."""
        self._values.pop(self._series(metric, metric.kind, labels), None)

    async def event(self, record: Event) -> None:
        """Send an event; it may be lost."""
        await self._send(_KINDS[type(record)], record)

    async def send_snapshot(self) -> None:
        """Send everything as it stands; it may be lost, the next one heals that."""
        self._changed.clear()
        self._seq += 1
        await self._send("snapshot", self.snapshot())

    def snapshot(self) -> Snapshot:
        """Return everything as it stands."""
        values = tuple(Value(name, value, dict(labels)) for (name, labels), value in self._values.items())
        histograms = tuple(
            Histogram(name, tuple(counts), self._sums[name, labels], dict(labels))
            for (name, labels), counts in self._counts.items()
        )
        return Snapshot(self._bus.service, self._bus.instance, self._seq, values, histograms)

    async def send_for_ever(self) -> None:
        """Send snapshots: soon after a change, and now and then without."""
        while True:
            await self.send_snapshot()
            await asyncio.sleep(LEAST_GAP_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_GAP_S - LEAST_GAP_S):
                    await self._changed.wait()

    async def _send(self, kind: str, record: Event | Snapshot) -> None:
        try:
            await self._bus.publish_record(metrics(self._bus.service, self._bus.instance, kind), record)
        except CortexError as error:
            log.debug("telemetry_not_sent", kind=kind, because=str(error))

    def _series(self, metric: Metric, kind: str, labels: dict[str, str]) -> _Series:
        assert metric in METRICS, f"{metric.name} is not in cortex_proto.telemetry.METRICS"
        assert metric.kind == kind, f"{metric.name} is a {metric.kind}"
        assert set(labels) == set(metric.labels), f"{metric.name} has the labels {metric.labels}"
        self._changed.set()
        return metric.name, tuple((name, labels[name]) for name in metric.labels)


@asynccontextmanager
async def reporting(bus: Bus) -> AsyncIterator[Telemetry]:
    """Collect, and send snapshots until left; a last one then."""
    telemetry = Telemetry(bus)
    task = asyncio.create_task(telemetry.send_for_ever())
    try:
        yield telemetry
    finally:
        await end(task)
        await telemetry.send_snapshot()


def now() -> str:
    """Return the present time as RFC 3339, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
