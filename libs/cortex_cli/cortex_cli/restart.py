"""When to start a program again that has died. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
GOOD_LIFE_S = 10.0
"""A program that lived this long was well: its next death counts as the first."""


@dataclass(frozen=True, slots=True)
class Death:
    """One life of a program, over."""

    started_s: float
    died_s: float

    @property
    def was_early(self) -> bool:
        """Whether it died before it could count as well."""
        return self.died_s - self.started_s < GOOD_LIFE_S


@dataclass(frozen=True, slots=True)
class Restart:
    """Start the program again after `delay_s`; there is no giving up."""

    delay_s: float
    because: str


def decide(now_s: float, deaths: Sequence[Death]) -> Restart:
    """Choose the pause after the last of `deaths` (at least one, oldest first).

    The pause doubles with each early death in a row and counts from the death, so what has passed
    of it since is not waited for again.
    """
    num_early = len(list(takewhile(lambda death: death.was_early, reversed(deaths))))
    if num_early <= 1:
        pause_s, because = FIRST_DELAY_S, "it ran well before" if num_early == 0 else "it died early once"
    else:
        pause_s = min(FIRST_DELAY_S * 2 ** (num_early - 1), LONGEST_DELAY_S)
        because = f"it died {num_early} times in a row within {GOOD_LIFE_S:g} s of its start"
    return Restart(max(0.0, deaths[-1].died_s + pause_s - now_s), because)
