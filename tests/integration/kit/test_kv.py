"""The KV client against a real server."""

import asyncio

import pytest

from conftest import BusFactory, NatsServer
from cortex_kit.buckets import NODES, PLACE
from cortex_kit.bus import Bus
from cortex_kit.kv import Bucket, Kv, RevisionConflictError
from cortex_proto.errors import BusError
from cortex_proto.placement import Epoch
from cortex_proto.subjects import EPOCH, Key, Topic

LIMIT_S = 10.0
SHORT = Bucket("SHORT", storage="memory", ttl_s=1.0, history=1, republish="cortex.short.>")
SHORT_LIVED: Key[Epoch] = Key("SHORT", "one", Epoch)


async def test_a_key_that_was_put_can_be_read_with_its_revision(kv: Kv) -> None:
    await kv.ensure_bucket(PLACE)

    revision = await kv.put(EPOCH, Epoch(7))

    entry = await kv.get(EPOCH)
    assert entry is not None
    assert (entry.value, entry.revision) == (Epoch(7), revision)


async def test_a_key_that_was_never_written_is_none(kv: Kv) -> None:
    await kv.ensure_bucket(PLACE)

    assert await kv.get(EPOCH) is None


async def test_an_absent_bucket_is_an_error_not_an_absent_key(kv: Kv) -> None:
    with pytest.raises(BusError):
        await kv.get(EPOCH)
    with pytest.raises(BusError):
        await kv.put(EPOCH, Epoch(1))
    with pytest.raises(BusError):
        await kv.all(PLACE.name, Epoch)


async def test_a_bucket_can_be_ensured_again_and_keeps_its_keys(kv: Kv) -> None:
    for bucket in (PLACE, NODES):
        await kv.ensure_bucket(bucket)
    await kv.put(EPOCH, Epoch(7))

    for bucket in (PLACE, NODES):
        await kv.ensure_bucket(bucket)

    assert await kv.get(EPOCH) is not None


async def test_a_bucket_of_another_shape_is_reshaped(kv: Kv) -> None:
    await kv.ensure_bucket(Bucket(PLACE.name, storage="file", ttl_s=None, history=1, republish=None))
    await kv.put(EPOCH, Epoch(7))

    await kv.ensure_bucket(PLACE)

    assert await kv.get(EPOCH) is not None


async def test_an_update_needs_the_present_revision(kv: Kv) -> None:
    await kv.ensure_bucket(PLACE)
    first = await kv.put(EPOCH, Epoch(1))
    second = await kv.update(EPOCH, Epoch(2), revision=first)

    with pytest.raises(RevisionConflictError):
        await kv.update(EPOCH, Epoch(3), revision=first)

    entry = await kv.get(EPOCH)
    assert entry is not None
    assert (entry.value, entry.revision) == (Epoch(2), second)


async def test_revision_0_creates_only_what_does_not_exist(kv: Kv) -> None:
    await kv.ensure_bucket(PLACE)
    await kv.update(EPOCH, Epoch(1), revision=0)

    with pytest.raises(RevisionConflictError):
        await kv.update(EPOCH, Epoch(2), revision=0)


async def test_a_deleted_key_is_gone_and_can_be_created_again(kv: Kv) -> None:
    await kv.ensure_bucket(PLACE)
    await kv.put(EPOCH, Epoch(1))

    await kv.delete(EPOCH)

    assert await kv.get(EPOCH) is None
    assert await kv.all(PLACE.name, Epoch) == {}
    assert await kv.update(EPOCH, Epoch(2), revision=0) == 3


async def test_of_two_who_write_at_once_exactly_one_wins(kv: Kv, bus_factory: BusFactory) -> None:
    await kv.ensure_bucket(PLACE)
    rivals = [kv, Kv(await bus_factory("rival"))]

    outcomes = await asyncio.gather(
        *(rival.update(EPOCH, Epoch(n), revision=0) for n, rival in enumerate(rivals)),
        return_exceptions=True,
    )

    assert sorted(isinstance(o, RevisionConflictError) for o in outcomes) == [False, True]


async def test_all_reads_every_live_key_of_a_bucket(kv: Kv) -> None:
    await kv.ensure_bucket(PLACE)
    keys: list[Key[Epoch]] = [Key(PLACE.name, f"desired.n{i}", Epoch) for i in range(5)]
    for n, key in enumerate(keys):
        await kv.put(key, Epoch(n))
    await kv.put(keys[1], Epoch(10))
    await kv.delete(keys[4])

    entries = await kv.all(PLACE.name, Epoch)

    assert {name: e.value.epoch for name, e in entries.items()} == {
        "desired.n0": 0, "desired.n1": 10, "desired.n2": 2, "desired.n3": 3,
    }  # fmt: skip
    assert entries["desired.n1"].revision == 6


async def test_all_of_an_empty_bucket_is_empty(kv: Kv) -> None:
    await kv.ensure_bucket(NODES)

    assert await kv.all(NODES.name, Epoch) == {}


async def test_a_change_is_heard_on_the_republished_subject(kv: Kv, bus: Bus) -> None:
    await kv.ensure_bucket(PLACE)
    heard: asyncio.Queue[tuple[Epoch, str]] = asyncio.Queue()

    async def hear(message: Epoch, subject: str) -> None:
        heard.put_nowait((message, subject))

    await bus.hear(Topic("cortex.place.>", Epoch), hear)
    await bus.barrier()

    await kv.put(EPOCH, Epoch(3))

    assert await asyncio.wait_for(heard.get(), LIMIT_S) == (Epoch(3), "cortex.place.meta")


async def test_an_expired_key_is_announced_without_payload_and_can_be_created_again(kv: Kv, bus: Bus) -> None:
    await kv.ensure_bucket(SHORT)
    payloads: asyncio.Queue[bytes] = asyncio.Queue()
    heard: list[Epoch] = []

    async def note(_subject: str, payload: bytes) -> None:
        payloads.put_nowait(payload)

    async def hear(message: Epoch, _subject: str) -> None:
        heard.append(message)

    await bus.hear(Topic("cortex.short.*", Epoch), hear)
    await bus.hear_raw("cortex.short.*", note)
    await bus.barrier()
    await kv.update(SHORT_LIVED, Epoch(1), revision=0)

    assert await asyncio.wait_for(payloads.get(), LIMIT_S)
    assert await asyncio.wait_for(payloads.get(), LIMIT_S) == b""

    assert await kv.get(SHORT_LIVED) is None
    assert await kv.all(SHORT.name, Epoch) == {}
    await kv.update(SHORT_LIVED, Epoch(2), revision=0)
    assert await asyncio.wait_for(payloads.get(), LIMIT_S)
    assert heard == [Epoch(1), Epoch(2)]
    assert bus.num_garbage == 0


async def test_a_memory_bucket_lost_in_a_restart_is_made_again(
    kv: Kv, bus: Bus, nats_server: NatsServer
) -> None:
    await kv.ensure_bucket(PLACE)
    await kv.ensure_bucket(NODES)
    await kv.put(EPOCH, Epoch(7))
    ensured = asyncio.Event()

    async def ensure() -> None:
        await kv.ensure_bucket(NODES)
        ensured.set()

    bus.on_reconnect(ensure)

    nats_server.restart()

    await asyncio.wait_for(ensured.wait(), LIMIT_S)
    assert await kv.all(NODES.name, Epoch) == {}
    entry = await kv.get(EPOCH)
    assert entry is not None
    assert entry.value == Epoch(7)
