"""What services publish on the bus is what Prometheus and people read over HTTP."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from conftest import BusFactory, NatsServer
from cortex_kit.bus import Bus
from cortex_kit.kv import Kv
from cortex_kit.service import Context
from cortex_kit.settings import Metrics, Settings
from cortex_kit.telemetry import reporting
from cortex_metrics.service import run
from cortex_proto.errors import BusError
from cortex_proto.fleet import Node
from cortex_proto.ids import InstanceId, ModelId, NodeId
from cortex_proto.subjects import Topic, metrics
from cortex_proto.telemetry import NODES_UP, REQUESTS, ModelUnloaded, Snapshot, Value

LABELS = {"model": "m", "node": "atlas"}
LIMIT_S = 10.0


class Reader:
    """Reads the service's HTTP until something holds; each wait is bounded."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def value(self, name: str, expected: float) -> dict[str, str]:
        """Wait until the sample `name` has the value `expected`; return its labels."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                text = (await self.http.get("/metrics")).raise_for_status().text
                for family in text_string_to_metric_families(text):
                    for sample in family.samples:
                        if sample.name == name and sample.value == expected:
                            return dict(sample.labels)

    async def fleet(self, part: str) -> list[dict[str, Any]]:
        """Wait until this part of `/fleet` holds anything; return it."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                found: list[dict[str, Any]] = (await self.http.get("/fleet")).json()[part]
                if found:
                    return found


@asynccontextmanager
async def service_on(bus: Bus) -> AsyncIterator[Reader]:
    """Run the metrics service on `bus`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = Settings(metrics=Metrics(listen=listen))
    async with (
        reporting(bus) as telemetry,
        run(Context(settings, bus, Kv(bus), telemetry, Path())),
        httpx.AsyncClient(base_url=f"http://{listen}") as http,
    ):
        await bus.barrier()
        yield Reader(http)


def snapshot(seq: int, count: float) -> Snapshot:
    return Snapshot("gateway", InstanceId("g1"), seq, (Value(REQUESTS.name, count, LABELS),), ())


async def publish(bus: Bus, record: Snapshot | ModelUnloaded, kind: str = "snapshot") -> None:
    await bus.publish_record(metrics("gateway", InstanceId("g1"), kind), record)


async def test_what_services_count_reaches_prometheus(bus_factory: BusFactory) -> None:
    other = await bus_factory("gateway")
    async with service_on(await bus_factory("metrics")) as reader:
        async with reporting(other) as telemetry:
            telemetry.count(REQUESTS, 3, model="m", node="atlas")
            telemetry.gauge(NODES_UP, 2)

        assert await reader.value("cortex_requests_total", 3) == LABELS
        assert await reader.value("cortex_nodes_up", 2) == {}


async def test_a_lost_snapshot_shows_and_the_totals_are_right_all_the_same(bus_factory: BusFactory) -> None:
    other = await bus_factory("gateway")
    async with service_on(await bus_factory("metrics")) as reader:
        await publish(other, snapshot(1, 3))
        await publish(other, snapshot(4, 9))

        await reader.value("cortex_requests_total", 9)
        await reader.value("cortex_snapshots_lost_total", 2)


@pytest.mark.parametrize(
    "payload", [b"\xff", b"{}", b'{"type":"Snapshot","service":"x","instance":"i","seq":1}', b"[" * 100_000]
)
async def test_garbage_is_counted_and_does_no_harm(bus_factory: BusFactory, payload: bytes) -> None:
    other = await bus_factory("gateway")
    async with service_on(await bus_factory("metrics")) as reader:
        with pytest.raises(BusError):  # it is heard, and nobody answers it
            await other.request_raw("cortex.metrics.gateway.g1.snapshot", payload, timeout_s=0.1)
        await publish(other, snapshot(1, 3))

        await reader.value("cortex_requests_total", 3)
        await reader.value("cortex_snapshots_refused_total", 1)


async def test_people_see_who_spoke_and_what_happened(bus_factory: BusFactory) -> None:
    other = await bus_factory("gateway")
    unloaded = ModelUnloaded(ModelId("m"), NodeId("atlas"), "2026-09-01T12:00:00Z")
    node = Node(NodeId("atlas"), InstanceId("n1"), "atlas.lab", "Linux", "6.12", "0.1.0", devices=())
    async with service_on(await bus_factory("metrics")) as reader:
        await publish(other, unloaded, "unloaded")
        await other.publish(Topic("cortex.node.atlas", Node), node)

        assert [event["type"] for event in await reader.fleet("events")] == ["ModelUnloaded"]
        assert [seen["node"]["hostname"] for seen in await reader.fleet("nodes")] == ["atlas.lab"]
        assert [source["service"] for source in await reader.fleet("sources")] == ["metrics"]


async def test_health_says_whether_the_bus_is_there(bus_factory: BusFactory, nats_server: NatsServer) -> None:
    bus = await bus_factory("metrics")
    async with service_on(bus) as reader:
        before = await reader.http.get("/health")
        nats_server.kill()
        async with asyncio.timeout(LIMIT_S):
            while (after := await reader.http.get("/health")).is_success:
                pass

    assert (before.status_code, before.json()) == (200, {"status": "ok"})
    assert (after.status_code, json.loads(after.text)["status"]) == (503, "degraded")
