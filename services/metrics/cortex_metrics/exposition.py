"""The totals as Prometheus text."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from cortex_metrics.aggregate import Numbers, Series
from cortex_proto.telemetry import METRICS, Metric

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition(totals: Mapping[Series, Numbers]) -> bytes:
    """Write every metric of `METRICS`, also those without a series yet."""
    return generate_latest(_Totals(totals))


@dataclass(frozen=True, slots=True)
class _Totals(Collector):
    totals: Mapping[Series, Numbers]

    def collect(self) -> Iterable[Family]:
        """Yield a family a metric, in the order of `METRICS`."""
        rows: dict[str, list[tuple[tuple[str, ...], Numbers]]] = {}
        for (name, labels), numbers in sorted(self.totals.items()):
            rows.setdefault(name, []).append((labels, numbers))
        for metric in METRICS:
            yield _family(metric, rows.get(metric.name, []))


def _family(metric: Metric, rows: Iterable[tuple[tuple[str, ...], Numbers]]) -> Family:
    match metric.kind:
        case "counter":
            counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, (value,) in rows:
                counter.add_metric(labels, value)
            return counter
        case "gauge":
            gauge = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, (value,) in rows:
                gauge.add_metric(labels, value)
            return gauge
        case _:
            histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, (*counts, total) in rows:
                histogram.add_metric(labels, list(_cumulative(metric, counts)), total)
            return histogram


def _cumulative(metric: Metric, counts: Iterable[float]) -> Iterator[tuple[str, float]]:
    """Pair each upper bound with the count of all observations up to it."""
    bounds = (*(str(float(bound)) for bound in metric.buckets), "+Inf")
    yield from zip(bounds, accumulate(counts), strict=True)
