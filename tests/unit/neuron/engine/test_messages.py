"""What goes through the socket pair comes out again, however it was cut."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.engine import request
from cortex_neuron.engine.messages import (
    MAX_MESSAGE_BYTES,
    Ended,
    LoadOptions,
    Ready,
    Refused,
    Sampled,
    StepEvents,
    Unframer,
    frame,
    from_rank,
    read_options,
    to_rank,
    write_options,
)
from cortex_proto.errors import BusyError, to_wire
from cortex_proto.ids import StreamId

ID = StreamId("a")
STEP = StepEvents(
    events=[
        Sampled(ID, [5, 70000]),
        Ended(ID, "stop", 3, 2, 0.1, 0.2, 0.3),
        Refused(ID, to_wire(BusyError("full"))),
    ],
    running=1,
    waiting=0,
    free_pages=3,
    pages=4,
)
ASKS = [
    request(str(n), range(n), max_tokens=n, temperature=0.5, seed=-n, ignore_eos=True) for n in range(1, 5)
]


@given(cuts=st.lists(st.integers(1, 60)))
def test_messages_survive_any_cutting_of_the_stream(cuts: list[int]) -> None:
    stream = b"".join(frame(ask) for ask in ASKS)
    unframer = Unframer()

    received = []
    for size in [*cuts, len(stream)]:
        received += [to_rank.decode(payload) for payload in unframer.feed(stream[:size])]
        stream = stream[size:]

    assert received == ASKS


@pytest.mark.parametrize("message", [STEP, Ready(context=2048, vocab_size=100, pages=32)])
def test_a_message_of_the_rank_comes_back_equal(message: StepEvents | Ready) -> None:
    [payload] = Unframer().feed(frame(message))

    assert from_rank.decode(payload) == message


def test_an_absurd_length_is_refused() -> None:
    with pytest.raises(ValueError, match="over the limit"):
        Unframer().feed((MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"))


def test_options_survive_the_command_line() -> None:
    devices = ("cuda:0", "cuda:3")
    options = LoadOptions(Path("/a b.gguf"), devices, "bfloat16", 2**40, 32, 128, 256, 4, Path("/t"))

    assert read_options(write_options(options)) == options
