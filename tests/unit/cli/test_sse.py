"""Server-sent events, cut anywhere."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cortex_cli.sse import Comment, Data, Lines

BODY = (
    ': waiting, 3 s\n\ndata: {"a": "\u00e4"}\r\n\r\nevent: x\nid: 1\ndata:bare\n\ndata: [DONE]\n\n'.encode()
)
LINES = [Comment("waiting, 3 s"), Data('{"a": "\u00e4"}'.encode()), Data(b"bare"), Data(b"[DONE]")]


def test_data_and_comments_are_told_apart_and_the_rest_is_passed_over() -> None:
    assert Lines().feed(BODY) == LINES


@given(st.lists(st.integers(0, len(BODY)), max_size=12))
def test_where_the_body_is_cut_makes_no_difference(cuts: list[int]) -> None:
    lines, edges = Lines(), [0, *sorted(cuts), len(BODY)]

    seen = [line for a, b in pairwise(edges) for line in lines.feed(BODY[a:b])]

    assert seen == LINES


def test_a_line_without_its_end_is_not_taken_yet() -> None:
    lines = Lines()

    assert lines.feed(b"data: hal") == []
    assert lines.feed(b"f\n") == [Data(b"half")]
