"""Telemetry: what a process counts, as it arrives at the other end of the bus."""

import asyncio

import pytest

from cortex_kit import telemetry
from cortex_kit.bus import Bus
from cortex_kit.telemetry import Telemetry, now, reporting
from cortex_proto.ids import ModelId, NodeId
from cortex_proto.telemetry import (
    FIRST_TOKEN_S,
    NODES_UP,
    REQUESTS,
    RUNNING,
    Decided,
    Event,
    Histogram,
    LoadFailed,
    Metric,
    ModelLoaded,
    ModelUnloaded,
    Snapshot,
    Value,
)
from cortex_proto.wire import from_json

LIMIT_S = 10.0
MODEL, NODE = ModelId("m"), NodeId("n")
HERE = {"model": "m", "node": "n"}


class Heard:
    """Collects everything under `cortex.metrics.>`."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    async def start(self, bus: Bus) -> None:
        await bus.hear_raw("cortex.metrics.>", self._hear)

    async def next(self) -> tuple[str, bytes]:
        return await asyncio.wait_for(self.queue.get(), LIMIT_S)

    async def snapshot_with(self, value: Value) -> Snapshot:
        while True:
            snapshot: Snapshot = from_json((await self.next())[1], Snapshot)
            if value in snapshot.values:
                return snapshot

    async def _hear(self, subject: str, payload: bytes) -> None:
        self.queue.put_nowait((subject, payload))


async def test_counters_add_up_by_label(bus: Bus) -> None:
    counted = Telemetry(bus)

    counted.count(REQUESTS, **HERE)
    counted.count(REQUESTS, 2, node="n", model="m")
    counted.count(REQUESTS, node="n", model="other")

    assert counted.snapshot().values == (
        Value(REQUESTS.name, 3.0, HERE),
        Value(REQUESTS.name, 1.0, {"model": "other", "node": "n"}),
    )


async def test_a_gauge_holds_the_last_value_until_it_is_forgotten(bus: Bus) -> None:
    counted = Telemetry(bus)
    counted.gauge(RUNNING, 3, **HERE)
    counted.gauge(RUNNING, 1, **HERE)
    counted.gauge(NODES_UP, 2)
    assert Value(RUNNING.name, 1, HERE) in counted.snapshot().values

    counted.forget(RUNNING, **HERE)

    assert counted.snapshot().values == (Value(NODES_UP.name, 2),)


async def test_an_observation_falls_into_one_bucket_its_upper_bound_included(bus: Bus) -> None:
    counted = Telemetry(bus)
    bounds = FIRST_TOKEN_S.buckets

    for value in (0.0, bounds[0], bounds[1], bounds[-1] + 1):
        counted.observe(FIRST_TOKEN_S, value, **HERE)

    counts = (2, 1, *(0,) * (len(bounds) - 2), 1)
    total = bounds[0] + bounds[1] + bounds[-1] + 1
    assert counted.snapshot().histograms == (Histogram(FIRST_TOKEN_S.name, counts, total, HERE),)


@pytest.mark.parametrize(
    ("metric", "labels"),
    [
        (REQUESTS, {"model": "m"}),
        (REQUESTS, {**HERE, "user": "alice"}),
        (RUNNING, HERE),
        (Metric("cortex_made_up_total", "None of ours.", (), "counter"), {}),
    ],
)
async def test_a_series_that_is_not_exported_is_refused(
    bus: Bus, metric: Metric, labels: dict[str, str]
) -> None:
    with pytest.raises(AssertionError, match=metric.name):
        Telemetry(bus).count(metric, **labels)


async def test_a_change_is_sent_soon_on_the_subject_of_this_instance(bus: Bus) -> None:
    heard = Heard()
    await heard.start(bus)

    async with reporting(bus) as counted:
        subject, payload = await heard.next()
        assert subject == f"cortex.metrics.test.{bus.instance}.snapshot"
        first: Snapshot = from_json(payload, Snapshot)
        counted.count(REQUESTS, **HERE)
        second = await heard.snapshot_with(Value(REQUESTS.name, 1.0, HERE))

    assert (first.service, first.instance) == ("test", bus.instance)
    assert second.seq > first.seq


async def test_without_a_change_a_snapshot_comes_all_the_same(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "LEAST_GAP_S", 0.01)
    monkeypatch.setattr(telemetry, "LONGEST_GAP_S", 0.02)
    heard = Heard()
    await heard.start(bus)

    async with reporting(bus):
        snapshots: list[Snapshot] = [from_json((await heard.next())[1], Snapshot) for _ in range(3)]

    assert [s.seq for s in snapshots] == [1, 2, 3]


async def test_many_changes_make_one_snapshot(bus: Bus) -> None:
    heard = Heard()
    await heard.start(bus)

    async with reporting(bus) as counted:
        await heard.next()
        for _ in range(100):
            counted.count(REQUESTS, **HERE)
            await bus.barrier()

    snapshot = await heard.snapshot_with(Value(REQUESTS.name, 100.0, HERE))
    assert snapshot.seq <= 3


async def test_what_was_counted_last_is_sent_when_leaving(bus: Bus) -> None:
    heard = Heard()
    await heard.start(bus)

    async with reporting(bus) as counted:
        await heard.next()
        counted.count(REQUESTS, **HERE)

    await heard.snapshot_with(Value(REQUESTS.name, 1.0, HERE))


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (ModelLoaded(MODEL, NODE, 1.5, 7, now()), "loaded"),
        (ModelUnloaded(MODEL, NODE, now()), "unloaded"),
        (LoadFailed(MODEL, NODE, "no room", now()), "load_failed"),
        (Decided(MODEL, NODE, "place", "it fits", 1, now()), "decided"),
    ],
)
async def test_an_event_is_sent_under_its_kind(bus: Bus, record: Event, kind: str) -> None:
    heard = Heard()
    await heard.start(bus)

    await Telemetry(bus).event(record)

    subject, payload = await heard.next()
    assert subject == f"cortex.metrics.test.{bus.instance}.{kind}"
    assert from_json(payload, Event) == record
