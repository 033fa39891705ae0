"""When a program that died is started again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_cli.restart import GOOD_LIFE_S, LONGEST_DELAY_S, Death, decide


def lives(*seconds: float) -> tuple[Death, ...]:
    """Deaths, one right after the other, the last at 0."""
    deaths: list[Death] = []
    died_s = 0.0
    for lived_s in reversed(seconds):
        deaths.insert(0, Death(died_s - lived_s, died_s))
        died_s -= lived_s
    return tuple(deaths)


@pytest.mark.parametrize(
    ("lived_s", "delay_s"),
    [
        ((1,), 0.1),
        ((1, 1), 0.2),
        ((1, 1, 1), 0.4),
        ((1,) * 6, 3.2),
        ((1,) * 7, 5.0),
        ((1,) * 500, 5.0),
        ((1, 1, 1, 100), 0.1),
        ((1, 1, 1, GOOD_LIFE_S), 0.1),
        ((1, 1, 1, 100, 1), 0.1),
        ((1, 1, 1, 100, 1, 1), 0.2),
        ((100, 100, 100), 0.1),
    ],
)
def test_the_pause_doubles_with_each_early_death_in_a_row(lived_s: tuple[float, ...], delay_s: float) -> None:
    assert decide(0.0, lives(*lived_s)).delay_s == pytest.approx(delay_s)


def test_what_has_passed_of_the_pause_is_not_waited_for_again() -> None:
    assert decide(0.15, lives(1, 1)).delay_s == pytest.approx(0.05)
    assert decide(60.0, lives(1, 1)).delay_s == 0.0


def test_it_says_how_often_the_program_died() -> None:
    assert decide(0.0, lives(100, 1, 1, 1)).because == "it died 3 times in a row within 10 s of its start"


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=60))
def test_it_never_gives_up_and_never_waits_longer_than_the_limit(lived_s: list[float]) -> None:
    assert 0.0 < decide(0.0, lives(*lived_s)).delay_s <= LONGEST_DELAY_S
