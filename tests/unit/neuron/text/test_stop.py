"""Stop strings: the text ends before the first match, however it is cut into pieces."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_neuron.text.stop import StopStrings

TEXTS = st.text(alphabet="abc", max_size=30)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    strings = StopStrings(stops)
    text = "".join([strings.take(piece) for piece in pieces])
    return text + strings.finish(), strings.hit


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def expected(stops: list[str], text: str) -> tuple[str, str | None]:
    """Look at ever longer beginnings of `text`, as a reader would, until one ends in a stop string."""
    for end in range(1, len(text) + 1):
        if ending := [stop for stop in stops if text[:end].endswith(stop)]:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(text=TEXTS, stops=STOPS, places=st.lists(st.integers(0, 30), max_size=8))
def test_any_cut_gives_the_same_text(text: str, stops: list[str], places: list[int]) -> None:
    assert run(stops, cut(text, places)) == expected(stops, text)


@given(text=TEXTS, stops=STOPS)
def test_what_has_passed_is_never_part_of_a_match(text: str, stops: list[str]) -> None:
    strings = StopStrings(stops)
    passed = ""
    for character in text:
        passed += strings.take(character)
        assert not any(stop in passed for stop in stops)


def test_the_longest_possible_beginning_is_held_back() -> None:
    strings = StopStrings(["END", "ND."])

    assert strings.take("the EN") == "the "
    assert strings.take("X") == "ENX"


def test_held_text_is_flushed_when_the_text_ends_for_another_reason() -> None:
    assert run(["STOP"], ["go ST"]) == ("go ST", None)


def test_nothing_passes_after_a_match() -> None:
    strings = StopStrings(["."])

    assert strings.take("one. two") == "one"
    assert strings.take("three") == ""
    assert strings.finish() == ""


@pytest.mark.parametrize("stops", [[], [""]])
def test_without_stop_strings_everything_passes_at_once(stops: list[str]) -> None:
    assert StopStrings(stops).take("anything") == "anything"
