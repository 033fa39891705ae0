"""Totals over all processes, from the cumulative snapshots that each of them sends.

A counter is the sum over every process that ever counted, so it never goes back: what a process
that has gone counted stays in `_base`. A gauge is the newest word of a process heard of lately.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cortex_proto.ids import InstanceId
from cortex_proto.telemetry import METRICS, Histogram, Metric, Snapshot, Value

Series = tuple[str, tuple[str, ...]]
"""A metric's name and the values of its labels, in the order of `Metric.labels`."""
Numbers = tuple[float, ...]
"""One number of a counter or gauge; of a histogram the count in each bucket alone, then the sum."""
Source = tuple[str, InstanceId]
"""A service and one run of it."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What keeps the aggregate small, whatever is sent to it."""

    gauge_limit_s: float = 15.0
    """A process silent for so long has no say on how things stand."""
    source_limit_s: float = 3600.0
    """A process silent for so long has gone; only its counts are kept."""
    max_sources: int = 1024
    """One more, and the one silent longest is taken to have gone."""
    max_gone: int = 8192
    """Names of processes that have gone; needed if one speaks again after all."""
    max_series: int = 50_000
    """One more is not taken in."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The snapshot counts. `lost` were missed before it; `dropped` series are over the budget."""

    lost: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Ignored:
    """The snapshot is older than one already seen."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The snapshot is not believed."""

    because: str


Outcome = Taken | Ignored | Refused


@dataclass(frozen=True, slots=True)
class Heard:
    """The last word of one process; `lost` counts all snapshots of it that were missed."""

    seq: int
    at_s: float
    lost: int
    counts: Mapping[Series, Numbers]
    gauges: Mapping[Series, Numbers]


@dataclass(slots=True)
class Aggregate:
    """All totals; one task owns it."""

    bounds: Bounds = Bounds()
    _sources: dict[Source, Heard] = field(init=False, default_factory=dict)
    """Ordered by when they were heard, so the first is the one silent longest."""
    _base: dict[Series, Numbers] = field(init=False, default_factory=dict)
    """What the processes that have gone had counted."""
    _gone: dict[Source, None] = field(init=False, default_factory=dict)
    _known: set[Series] = field(init=False, default_factory=set)

    def take(self, snapshot: Snapshot, now_s: float) -> Outcome:
        """Put `snapshot` in the place of the one before it."""
        source = (snapshot.service, snapshot.instance)
        last = self._sources.get(source)
        if last and snapshot.seq <= last.seq:
            return Ignored()
        try:
            read = dict(_read(snapshot))
        except _WrongError as error:
            return Refused(str(error))
        kept = {series: numbers for series, numbers in read.items() if self._has_room_for(series)}
        lost = snapshot.seq - last.seq - 1 if last else 0
        self._sources.pop(source, None)
        self._sources[source] = heard = Heard(
            seq=snapshot.seq,
            at_s=now_s,
            lost=lost + (last.lost if last else 0),
            counts={s: n for s, n in kept.items() if _BY_NAME[s[0]].kind != "gauge"},
            gauges={s: n for s, n in kept.items() if _BY_NAME[s[0]].kind == "gauge"},
        )
        self._welcome_back(source, heard)
        self._let_go(now_s)
        return Taken(lost, dropped=len(read) - len(kept))

    def totals(self, now_s: float) -> dict[Series, Numbers]:
        """Every series there is at present."""
        totals = dict(self._base)
        for heard in self._sources.values():
            _add(totals, heard.counts)
            if now_s - heard.at_s <= self.bounds.gauge_limit_s:
                totals.update(heard.gauges)
        return totals

    def sources(self) -> Mapping[Source, Heard]:
        """Show the last word of every process that has not gone, longest silent first."""
        return self._sources

    def _has_room_for(self, series: Series) -> bool:
        if series not in self._known and len(self._known) < self.bounds.max_series:
            self._known.add(series)
        return series in self._known

    def _welcome_back(self, source: Source, heard: Heard) -> None:
        """Go on from here if a process speaks that had gone: its counts are in the base already."""
        if source in self._gone:
            del self._gone[source]
            _add(self._base, heard.counts, sign=-1)

    def _let_go(self, now_s: float) -> None:
        while self._sources:
            source, heard = next(iter(self._sources.items()))
            is_silent = now_s - heard.at_s > self.bounds.source_limit_s
            if not is_silent and len(self._sources) <= self.bounds.max_sources:
                return
            del self._sources[source]
            _add(self._base, heard.counts)
            self._gone[source] = None
            if len(self._gone) > self.bounds.max_gone:
                del self._gone[next(iter(self._gone))]


class _WrongError(ValueError):
    """A snapshot holds what no honest process would send; the text says what."""


_BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}


def _add(totals: dict[Series, Numbers], more: Mapping[Series, Numbers], sign: int = 1) -> None:
    for series, numbers in more.items():
        before = totals.get(series, (0.0,) * len(numbers))
        totals[series] = tuple(a + sign * b for a, b in zip(before, numbers, strict=True))


def _read(snapshot: Snapshot) -> Iterator[tuple[Series, Numbers]]:
    for value in snapshot.values:
        metric = _metric_of(value)
        if metric.kind == "histogram":
            raise _WrongError(f"{value.name} is a histogram, not a single value")
        if not math.isfinite(value.value) or (metric.kind == "counter" and value.value < 0):
            raise _WrongError(f"{value.name} cannot be {value.value}")
        yield _series(metric, value.labels), (value.value,)
    for histogram in snapshot.histograms:
        metric = _metric_of(histogram)
        if len(histogram.counts) != len(metric.buckets) + 1 or metric.kind != "histogram":
            raise _WrongError(f"{histogram.name} has not {len(histogram.counts)} buckets")
        if not math.isfinite(histogram.sum) or min(histogram.counts) < 0:
            raise _WrongError(f"{histogram.name} has a negative count, or a sum of {histogram.sum}")
        yield _series(metric, histogram.labels), (*histogram.counts, histogram.sum)


def _metric_of(value: Value | Histogram) -> Metric:
    metric = _BY_NAME.get(value.name)
    if metric is None:
        raise _WrongError(f"there is no metric {value.name!r}")
    if set(value.labels) != set(metric.labels):
        raise _WrongError(
            f"{value.name} has the labels {', '.join(metric.labels)}, not {', '.join(value.labels)}"
        )
    return metric


def _series(metric: Metric, labels: Mapping[str, str]) -> Series:
    return metric.name, tuple(labels[label] for label in metric.labels)
