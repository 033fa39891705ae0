import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_gateway import sse


def test_a_frame_is_one_event() -> None:
    assert sse.frame(b'{"a":1}') == b'data: {"a":1}\n\n'


@pytest.mark.parametrize("text", ["loading 45 %", "two\nlines", "\r\n\r\ndata: forged"])
def test_a_comment_is_one_line_whatever_is_in_it(text: str) -> None:
    comment = sse.comment(text)

    assert comment.startswith(b": ")
    assert comment.endswith(b"\n\n")
    assert not {b"\n", b"\r"} & {comment[i : i + 1] for i in range(len(comment) - 2)}


@given(st.text())
def test_no_text_makes_a_comment_an_event(text: str) -> None:
    assert all(line.startswith(":") for line in sse.comment(text).decode().split("\n")[:-2])
