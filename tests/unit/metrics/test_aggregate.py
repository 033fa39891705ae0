"""Totals over processes that come, go, fall silent, and are heard out of order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_metrics.aggregate import Aggregate, Bounds, Ignored, Refused, Taken
from cortex_proto.ids import InstanceId
from cortex_proto.telemetry import (
    FIRST_TOKEN_S,
    NODES_UP,
    REQUESTS,
    RUNNING,
    Histogram,
    Metric,
    Snapshot,
    Value,
)

LABELS = {"model": "m", "node": "atlas"}
SERIES = ("m", "atlas")


def snapshot(*values: Value | Histogram, seq: int = 1, instance: str = "a") -> Snapshot:
    return Snapshot(
        service="gateway",
        instance=InstanceId(instance),
        seq=seq,
        values=tuple(value for value in values if isinstance(value, Value)),
        histograms=tuple(value for value in values if isinstance(value, Histogram)),
    )


def requests(count: float, model: str = "m") -> Value:
    return Value(REQUESTS.name, count, LABELS | {"model": model})


def running(count: float) -> Value:
    return Value(RUNNING.name, count, LABELS)


def first_tokens(*counts: int, total: float) -> Histogram:
    num_buckets = len(FIRST_TOKEN_S.buckets) + 1
    return Histogram(FIRST_TOKEN_S.name, counts + (0,) * (num_buckets - len(counts)), total, LABELS)


def total(aggregate: Aggregate, metric: Metric, now_s: float = 0.0) -> float | None:
    numbers = aggregate.totals(now_s).get((metric.name, SERIES))
    return numbers[0] if numbers else None


def test_counters_of_all_processes_add_up() -> None:
    aggregate = Aggregate()

    aggregate.take(snapshot(requests(3), instance="a"), 0)
    aggregate.take(snapshot(requests(4), instance="b"), 0)

    assert total(aggregate, REQUESTS) == 7


def test_a_newer_snapshot_replaces_the_older_one() -> None:
    aggregate = Aggregate()

    aggregate.take(snapshot(requests(3), seq=1), 0)
    outcome = aggregate.take(snapshot(requests(5), seq=2), 1)

    assert outcome == Taken(lost=0, dropped=0)
    assert total(aggregate, REQUESTS) == 5


@pytest.mark.parametrize("seq", [1, 2])
def test_an_older_or_repeated_snapshot_is_ignored(seq: int) -> None:
    aggregate = Aggregate()
    aggregate.take(snapshot(requests(5), seq=2), 0)

    outcome = aggregate.take(snapshot(requests(3), seq=seq), 1)

    assert outcome == Ignored()
    assert total(aggregate, REQUESTS) == 5


def test_lost_snapshots_are_counted_and_healed_by_the_next() -> None:
    aggregate = Aggregate()
    aggregate.take(snapshot(requests(1), seq=1), 0)

    outcomes = [aggregate.take(snapshot(requests(seq), seq=seq), 1) for seq in (4, 9)]

    assert outcomes == [Taken(lost=2, dropped=0), Taken(lost=4, dropped=0)]
    assert total(aggregate, REQUESTS) == 9
    assert [heard.lost for heard in aggregate.sources().values()] == [6]


def test_histograms_add_up_bucket_by_bucket() -> None:
    aggregate = Aggregate()

    aggregate.take(snapshot(first_tokens(1, 2, total=0.5), instance="a"), 0)
    aggregate.take(snapshot(first_tokens(0, 1, 4, total=0.75), instance="b"), 0)

    numbers = aggregate.totals(0)[(FIRST_TOKEN_S.name, SERIES)]
    assert numbers[:4] == (1, 3, 4, 0)
    assert numbers[-1] == 1.25


def test_a_gauge_is_the_newest_word_not_a_sum() -> None:
    aggregate = Aggregate()

    aggregate.take(snapshot(running(3), instance="before-restart"), 0)
    aggregate.take(snapshot(running(1), instance="after-restart"), 1)

    assert total(aggregate, RUNNING, now_s=1) == 1


def test_a_silent_process_keeps_its_counts_but_has_no_say_in_gauges() -> None:
    aggregate = Aggregate()
    aggregate.take(snapshot(requests(3), running(2)), 0)

    assert total(aggregate, RUNNING, now_s=15) == 2
    assert total(aggregate, RUNNING, now_s=15.1) is None
    assert total(aggregate, REQUESTS, now_s=15.1) == 3


def test_totals_stay_when_a_process_has_gone() -> None:
    aggregate = Aggregate()
    aggregate.take(snapshot(requests(3), first_tokens(2, total=0.5), instance="old"), 0)

    aggregate.take(snapshot(requests(1), instance="new"), 3601)

    assert [instance for _, instance in aggregate.sources()] == ["new"]
    assert total(aggregate, REQUESTS, now_s=3601) == 4
    assert total(aggregate, FIRST_TOKEN_S, now_s=3601) == 2


def test_a_process_that_returns_from_long_silence_is_not_counted_twice() -> None:
    aggregate = Aggregate()
    aggregate.take(snapshot(requests(3), instance="a", seq=1), 0)
    aggregate.take(snapshot(requests(1), instance="b"), 4000)

    aggregate.take(snapshot(requests(5), instance="a", seq=2), 4001)
    aggregate.take(snapshot(requests(7), instance="a", seq=3), 4002)

    assert total(aggregate, REQUESTS, now_s=4002) == 3 + 1 + (7 - 5)


def test_the_number_of_processes_is_bounded_and_the_longest_silent_goes_first() -> None:
    aggregate = Aggregate(Bounds(max_sources=2))

    for now_s, instance in enumerate(("a", "b", "c")):
        aggregate.take(snapshot(requests(1), instance=instance), now_s)

    assert [instance for _, instance in aggregate.sources()] == ["b", "c"]
    assert total(aggregate, REQUESTS, now_s=2) == 3


def test_series_over_the_budget_are_dropped_and_those_known_go_on() -> None:
    aggregate = Aggregate(Bounds(max_series=2))
    aggregate.take(snapshot(requests(1), seq=1), 0)

    outcome = aggregate.take(snapshot(requests(2), requests(1, "x"), requests(1, "y"), seq=2), 1)

    assert outcome == Taken(lost=0, dropped=1)
    assert len(aggregate.totals(1)) == 2
    assert total(aggregate, REQUESTS, now_s=1) == 2


@pytest.mark.parametrize(
    ("value", "because"),
    [
        (Value("cortex_made_up_total", 1), "no metric 'cortex_made_up_total'"),
        (Value(REQUESTS.name, 1, {"model": "m"}), "labels"),
        (Value(REQUESTS.name, 1, LABELS | {"user": "eve"}), "user"),
        (Value(REQUESTS.name, -1, LABELS), "cannot be -1"),
        (Value(RUNNING.name, float("nan"), LABELS), "cannot be nan"),
        (Value(FIRST_TOKEN_S.name, 1, LABELS), "is a histogram"),
        (Histogram(FIRST_TOKEN_S.name, (1, 2), 0.5, LABELS), "buckets"),
        (Histogram(REQUESTS.name, (1,), 0.5, LABELS), "buckets"),
        (first_tokens(-1, total=0.5), "negative"),
        (first_tokens(1, total=float("inf")), "inf"),
    ],
)
def test_a_snapshot_that_breaks_the_contract_is_refused_whole(value: Value | Histogram, because: str) -> None:
    aggregate = Aggregate()

    outcome = aggregate.take(snapshot(Value(NODES_UP.name, 1), value), 0)

    assert isinstance(outcome, Refused)
    assert because in outcome.because
    assert aggregate.totals(0) == {}


steps = st.tuples(
    st.sampled_from("abcd"),
    st.integers(0, 5).map(float),
    st.booleans(),
    st.sampled_from([0.0, 1.0, 20.0, 4000.0]),
)


@given(st.lists(steps, max_size=30))
def test_a_total_never_goes_back_nor_above_what_was_counted(
    history: list[tuple[str, float, bool, float]],
) -> None:
    aggregate = Aggregate(Bounds(max_sources=2))
    counted = dict.fromkeys("abcd", 0.0)
    seq = dict.fromkeys("abcd", 0)
    now_s, before = 0.0, 0.0

    for instance, more, arrives, pause_s in history:
        now_s += pause_s
        counted[instance] += more
        seq[instance] += 1
        if arrives:
            aggregate.take(snapshot(requests(counted[instance]), seq=seq[instance], instance=instance), now_s)
        after = total(aggregate, REQUESTS, now_s) or 0.0
        assert before <= after <= sum(counted.values())
        before = after
