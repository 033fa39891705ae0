"""A stream reaches the gateway whole and in order, or ends with an error: never silently wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_proto.errors import StreamBrokenError
from cortex_proto.generation import (
    Accepted,
    Delta,
    Finished,
    Frame,
    ReasoningDelta,
    TextDelta,
    Timing,
    ToolCallDelta,
    Usage,
)
from cortex_proto.ids import NodeId, StreamId
from cortex_proto.stream import Checking, Digest, Numbering

STREAM = StreamId("r-0")

pieces = st.text(min_size=1, max_size=5)
deltas = st.one_of(
    st.builds(TextDelta, pieces),
    st.builds(ReasoningDelta, pieces),
    st.builds(
        ToolCallDelta,
        index=st.integers(0, 2),
        arguments=st.text(max_size=5),
        id=st.none() | pieces,
        name=st.none() | pieces,
    ),
)
answers = st.lists(deltas, max_size=8)


def frames_of(answer: list[Delta]) -> list[Frame]:
    """Number `answer` as the neuron does, from acceptance to the end."""
    numbering = Numbering(STREAM)
    frames = [numbering.frame(delta) for delta in (Accepted(NodeId("atlas")), *answer)]
    end = Finished("stop", Usage(3, len(answer)), Timing(0, 0.1, 0.2), numbering.digest.text())
    return [*frames, numbering.frame(end)]


def receive(checking: Checking, frames: list[Frame]) -> list[Delta]:
    """Take frames until one is refused, as the gateway does."""
    taken: list[Delta] = []
    for frame in frames:
        try:
            taken.append(checking.take(frame))
        except StreamBrokenError:
            break
    return taken


@given(answers)
def test_an_answer_that_arrives_whole_passes(answer: list[Delta]) -> None:
    frames = frames_of(answer)
    checking = Checking()

    taken = [checking.take(frame) for frame in frames]
    checking.check(len(frames))

    assert taken == [frame.delta for frame in frames]


@given(answers, st.data())
def test_any_loss_duplication_or_reordering_leaves_an_exact_prefix(
    answer: list[Delta], data: st.DataObject
) -> None:
    frames = frames_of(answer)
    arrived = data.draw(st.lists(st.sampled_from(frames), max_size=2 * len(frames)))

    taken = receive(Checking(), arrived)

    assert taken == [frame.delta for frame in frames[: len(taken)]]


@given(answers, st.data())
def test_an_answer_is_whole_only_if_every_frame_came_in_order(
    answer: list[Delta], data: st.DataObject
) -> None:
    frames = frames_of(answer)
    arrived = data.draw(st.permutations(frames))

    taken = receive(Checking(), arrived)

    assert any(isinstance(delta, Finished) for delta in taken) == (arrived == frames)


@given(answers, st.data())
def test_a_lost_tail_shows_in_the_count_of_frames_sent(answer: list[Delta], data: st.DataObject) -> None:
    frames = frames_of(answer)
    arrived = data.draw(st.integers(0, len(frames) - 1))
    checking = Checking()
    receive(checking, frames[:arrived])

    with pytest.raises(StreamBrokenError, match=f"{len(frames) - arrived} frames at the end were lost"):
        checking.check(len(frames))


@given(st.lists(deltas, min_size=1, max_size=8), st.data())
def test_a_changed_piece_never_ends_well(answer: list[Delta], data: st.DataObject) -> None:
    frames = frames_of(answer)
    place = data.draw(st.integers(1, len(answer)))
    other = data.draw(deltas.filter(lambda delta: said(delta) != said(frames[place].delta)))
    frames[place] = Frame(STREAM, place, other)
    checking = Checking()

    receive(checking, frames[:-1])

    with pytest.raises(StreamBrokenError, match="differs"):
        checking.take(frames[-1])


def said(delta: Delta) -> object:
    """Tell apart what a client would see apart: an absent name is an empty one."""
    if isinstance(delta, ToolCallDelta):
        return (delta.index, delta.id or "", delta.name or "", delta.arguments)
    return delta


def test_a_stream_that_the_node_forgot_is_broken() -> None:
    with pytest.raises(StreamBrokenError, match="no longer knows"):
        Checking().check(None)


def test_frames_still_on_their_way_are_no_loss() -> None:
    frames = frames_of([TextDelta("a")])
    checking = Checking()
    receive(checking, frames)

    checking.check(1)

    assert checking.received == 3


def test_a_digest_tells_where_one_piece_ends_and_the_next_begins() -> None:
    one, other = Digest(), Digest()

    one.add(TextDelta("a"))
    one.add(TextDelta("b"))
    other.add(TextDelta("atb"))

    assert one.text() != other.text()
