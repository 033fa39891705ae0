"""Thoughts and answer are told apart, however the text comes, and no mark is ever seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.pieces import Said, cut, said
from cortex_neuron.text.reasoning import THOUGHTS, Marks, Reasoning

THINK = THOUGHTS[0]
CALL = Marks("<tool_call>", "</tool_call>")
WORDS = st.lists(
    st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", "<thi", "</", "a", " ", "\n", "<"])
)


def run(pieces: list[str], *, marks: Marks | None = THINK, is_open: bool = False) -> list[Said]:
    reasoning = Reasoning(marks, is_open=is_open, opaque=(CALL,))
    return said([delta for piece in pieces for delta in reasoning.take(piece)] + reasoning.finish())


@pytest.mark.parametrize("marks", THOUGHTS)
def test_every_known_pair_of_marks_is_understood(marks: Marks) -> None:
    text = f"{marks.open}\nhmm\n{marks.close}\n\n42"

    assert run([text], marks=marks) == [("thought", "hmm"), ("text", "42")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42", [("text", "42")]),
        (" 42\n", [("text", " 42\n")]),
        ("\n<think>a b</think>c", [("thought", "a b"), ("text", "c")]),
        ("<think>\n\n</think>\n\nc", [("text", "c")]),
        ("<think>a\n\nb", [("thought", "a\n\nb")]),
        ("<think>a</thi", [("thought", "a</thi")]),
        ("a<think>b</think>c", [("text", "a"), ("thought", "b"), ("text", "c")]),
        ("a</think>b", [("text", "ab")]),
        ("a <b> c", [("text", "a <b> c")]),
        ("<think>a<think>b</think>c", [("thought", "ab"), ("text", "c")]),
        ("<think>a<tool_call>b</think>c", [("thought", "a<tool_call>b"), ("text", "c")]),
        ("<tool_call><think></tool_call>", [("text", "<tool_call><think></tool_call>")]),
        (
            "<tool_call>x</tool_call><think>y</think>",
            [("text", "<tool_call>x</tool_call>"), ("thought", "y")],
        ),
    ],
)
def test_a_text_is_sorted(text: str, expected: list[Said]) -> None:
    assert run([text]) == run(list(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hmm</think>42", [("thought", "hmm"), ("text", "42")]),
        ("\nhmm\n", [("thought", "hmm\n")]),
        ("<think>hmm</think>42", [("thought", "hmm"), ("text", "42")]),
        ("</think>42", [("text", "42")]),
    ],
)
def test_a_block_that_the_template_opened_goes_on(text: str, expected: list[Said]) -> None:
    assert run([text], is_open=True) == run(list(text), is_open=True) == expected


def test_without_marks_everything_is_the_answer() -> None:
    assert run(["<think>", "a</think>"], marks=None) == [("text", "<think>a</think>")]


def test_thoughts_pass_as_they_come() -> None:
    reasoning = Reasoning(THINK, is_open=True)

    assert said(reasoning.take("let me see")) == [("thought", "let me see")]
    assert reasoning.is_inside
    assert reasoning.take("</think>") == []
    assert not reasoning.is_inside


@given(words=WORDS, places=st.lists(st.integers(0, 60), max_size=8), is_open=st.booleans())
def test_any_cut_gives_the_same(words: list[str], places: list[int], *, is_open: bool) -> None:
    text = "".join(words)

    assert run(cut(text, places), is_open=is_open) == run([text], is_open=is_open)


@given(words=st.lists(st.sampled_from(["<think>", "</think>", "a", " ", "b<"])), is_open=st.booleans())
def test_no_mark_is_ever_seen_and_nothing_else_is_lost(words: list[str], *, is_open: bool) -> None:
    text = "".join(words)

    heard = "".join(part[1] for part in run(list(text), is_open=is_open))

    assert "think>" not in heard
    assert "".join(heard.split()) == "".join(text.replace("<think>", "").replace("</think>", "").split())
