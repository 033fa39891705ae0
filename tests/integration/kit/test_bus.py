"""The typed bus against a real server: what a service may rely on while all is well."""

import asyncio

import pytest

from conftest import BusFactory
from cortex_kit.bus import Bus
from cortex_proto.errors import BusError, Failed, ModelUnknownError, NoRoomError
from cortex_proto.fleet import LoadRefused, Replica
from cortex_proto.ids import ModelId, NodeId
from cortex_proto.placement import Ensure, EnsureReply, Pending, Placed
from cortex_proto.subjects import ANY_LOAD, ENSURE, Topic, load
from cortex_proto.telemetry import ModelUnloaded
from cortex_proto.wire import from_json

LIMIT_S = 10.0
MODEL = ModelId("a/model-1.5")
ENSURE_IT = Ensure(MODEL)


def replica(node: str) -> Replica:
    return Replica(MODEL, NodeId(node), LoadRefused("a test"))


class Heard:
    """Collects what a subscription delivers."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[Replica, str]] = asyncio.Queue()

    async def __call__(self, message: Replica, subject: str) -> None:
        self.queue.put_nowait((message, subject))

    async def next(self) -> tuple[Replica, str]:
        return await asyncio.wait_for(self.queue.get(), LIMIT_S)


async def test_messages_are_heard_in_order_with_their_subject(bus: Bus, bus_factory: BusFactory) -> None:
    heard = Heard()
    await bus.hear(ANY_LOAD, heard)
    await bus.barrier()
    sender = await bus_factory("sender")

    for n in range(100):
        await sender.publish(load(MODEL, NodeId(f"n{n}")), replica(f"n{n}"))

    for n in range(100):
        assert await heard.next() == (replica(f"n{n}"), f"cortex.load.a=2Fmodel-1=2E5.n{n}")


async def test_a_stopped_subscription_hears_no_more(bus: Bus) -> None:
    heard, all_the_time = Heard(), Heard()
    subscription = await bus.hear(ANY_LOAD, heard)
    await bus.hear(ANY_LOAD, all_the_time)

    await subscription.stop()
    await bus.publish(load(MODEL, NodeId("n1")), replica("n1"))

    await all_the_time.next()
    await bus.barrier()
    assert heard.queue.empty()


async def test_one_member_of_a_queue_group_gets_each_message(bus: Bus, bus_factory: BusFactory) -> None:
    members = [Heard(), Heard()]
    for member in members:
        await bus.hear(ANY_LOAD, member, queue="group")
    last: Topic[Replica] = Topic("cortex.load.last.n1", Replica)
    end = Heard()
    await bus.hear(last, end)

    for _ in range(20):
        await bus.publish(load(MODEL, NodeId("n1")), replica("n1"))
    await bus.publish(last, replica("n1"))

    await end.next()
    await bus.barrier()
    assert sum(m.queue.qsize() for m in members) == 21


async def test_garbage_is_counted_and_dropped_and_the_next_message_is_heard(bus: Bus) -> None:
    heard = Heard()
    await bus.hear(ANY_LOAD, heard)
    topic = load(MODEL, NodeId("n1"))
    for garbage in (b"\xc1", b"", b"\xa2\xff\xfe", b"\x91" * 5000, b"\x81\xa4type\xa7Replica"):
        with pytest.raises(BusError):  # nobody replies
            await bus.request_raw(topic.subject, garbage, timeout_s=0.01)

    await bus.publish(topic, replica("n1"))

    assert (await heard.next())[0] == replica("n1")
    assert bus.num_garbage == 5


async def test_a_handler_that_raises_is_called_again_for_the_next_message(bus: Bus) -> None:
    heard: asyncio.Queue[Replica] = asyncio.Queue()

    async def fragile(message: Replica, _subject: str) -> None:
        if message.node == "bad":
            raise RuntimeError("a bug")
        heard.put_nowait(message)

    await bus.hear(ANY_LOAD, fragile)

    await bus.publish(load(MODEL, NodeId("bad")), replica("bad"))
    await bus.publish(load(MODEL, NodeId("good")), replica("good"))

    assert await asyncio.wait_for(heard.get(), LIMIT_S) == replica("good")


async def test_a_publisher_with_a_reply_subject_learns_that_nobody_listens(bus: Bus) -> None:
    unanswered: asyncio.Queue[str] = asyncio.Queue()
    heard = Heard()
    await bus.hear(Topic("cortex.tok.gw.*.*", Replica), heard, unanswered=unanswered.put_nowait)

    await bus.publish(load(MODEL, NodeId("n1")), replica("n1"), reply="cortex.tok.gw.0.s1")

    assert await asyncio.wait_for(unanswered.get(), LIMIT_S) == "cortex.tok.gw.0.s1"
    assert heard.queue.empty()


async def test_an_ask_gets_the_answer(bus: Bus, bus_factory: BusFactory) -> None:
    async def place(ask: Ensure) -> EnsureReply:
        return Placed(NodeId("n1"), f"{ask.model} is there")

    await bus.answer(ENSURE, place)
    await bus.barrier()

    reply = await (await bus_factory("asker")).ask(ENSURE, ENSURE_IT, timeout_s=LIMIT_S)

    assert reply == Placed(NodeId("n1"), "a/model-1.5 is there")


async def test_an_error_of_the_answering_side_is_raised_by_ask_as_itself(bus: Bus) -> None:
    async def refuse(_ask: Ensure) -> EnsureReply:
        raise NoRoomError("needs 7 GiB, 3 GiB are free")

    await bus.answer(ENSURE, refuse)

    with pytest.raises(NoRoomError, match="needs 7 GiB"):
        await bus.ask(ENSURE, ENSURE_IT, timeout_s=LIMIT_S)


async def test_a_bug_of_the_answering_side_shows_no_more_than_that_it_is_one(bus: Bus) -> None:
    async def stumble(_ask: Ensure) -> EnsureReply:
        raise KeyError("secret")

    await bus.answer(ENSURE, stumble)

    with pytest.raises(Exception, match=r"^internal error$"):
        await bus.ask(ENSURE, ENSURE_IT, timeout_s=LIMIT_S)


async def test_asks_are_answered_side_by_side(bus: Bus) -> None:
    both_here = asyncio.Barrier(2)

    async def meet(_ask: Ensure) -> EnsureReply:
        await both_here.wait()
        return Pending("met")

    await bus.answer(ENSURE, meet)

    replies = await asyncio.gather(*(bus.ask(ENSURE, ENSURE_IT, timeout_s=LIMIT_S) for _ in range(2)))

    assert replies == [Pending("met")] * 2


async def test_an_ask_that_nobody_hears_fails_at_once(bus: Bus) -> None:
    with pytest.raises(BusError, match=r"nobody answers on cortex\.sched\.ensure"):
        await bus.ask(ENSURE, ENSURE_IT, timeout_s=1000.0)


async def test_an_ask_that_is_not_answered_in_time_fails(bus: Bus) -> None:
    async def forget(_ask: Ensure) -> EnsureReply:
        await asyncio.Event().wait()
        raise AssertionError

    await bus.answer(ENSURE, forget)

    with pytest.raises(BusError, match=r"no answer on cortex\.sched\.ensure in"):
        await bus.ask(ENSURE, ENSURE_IT, timeout_s=0.05)


async def test_an_unreadable_question_is_refused(bus: Bus) -> None:
    async def never(_ask: Ensure) -> EnsureReply:
        raise AssertionError

    await bus.answer(ENSURE, never)

    reply = await bus.request_raw(ENSURE.subject, b"\xc1", timeout_s=LIMIT_S)

    assert b"invalid_request" in reply.payload


async def test_an_unreadable_answer_is_an_error(bus: Bus) -> None:
    class Odd(Failed, frozen=True, tag="Odd"):
        pass

    async def oddly(_ask: Ensure) -> EnsureReply:
        return Odd("a", "b", retryable=False)  # type: ignore[return-value]  # a release from the future

    await bus.answer(ENSURE, oddly)

    with pytest.raises(BusError, match="cannot be read"):
        await bus.ask(ENSURE, ENSURE_IT, timeout_s=LIMIT_S)


async def test_an_answering_task_is_cancelled_when_its_bus_is_left(bus: Bus, bus_factory: BusFactory) -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def linger(_ask: Ensure) -> EnsureReply:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    answering = await bus_factory("answering")
    await answering.answer(ENSURE, linger)
    await answering.barrier()
    asking = asyncio.create_task(bus.ask(ENSURE, ENSURE_IT, timeout_s=LIMIT_S))
    await asyncio.wait_for(asked.wait(), LIMIT_S)

    await answering.leave()

    assert cancelled.is_set()
    asking.cancel()


async def test_errors_keep_their_class_over_the_wire(bus: Bus) -> None:
    async def unknown(ask: Ensure) -> EnsureReply:
        raise ModelUnknownError(f"no model {ask.model}")

    await bus.answer(ENSURE, unknown)

    with pytest.raises(ModelUnknownError):
        await bus.ask(ENSURE, ENSURE_IT, timeout_s=LIMIT_S)


async def test_records_are_json_that_people_can_read(bus: Bus) -> None:
    heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    async def note(subject: str, payload: bytes) -> None:
        heard.put_nowait((subject, payload))

    await bus.hear_raw("cortex.metrics.>", note)
    record = ModelUnloaded(MODEL, NodeId("n1"), "2026-01-01T00:00:00Z")

    await bus.publish_record("cortex.metrics.neuron.x.unloaded", record)

    subject, payload = await asyncio.wait_for(heard.get(), LIMIT_S)
    assert subject == "cortex.metrics.neuron.x.unloaded"
    assert payload.startswith(b'{"type":"ModelUnloaded","model":"a/model-1.5"')
    assert from_json(payload, ModelUnloaded) == record
