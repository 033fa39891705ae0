"""Finds marks in a text that comes in pieces."""

from collections.abc import Iterable


def first_match(text: str, marks: Iterable[str]) -> tuple[int, str] | None:
    """Find the mark that is complete first, and where it begins; of several, the longest.

    So the result does not depend on how the text was cut into pieces.
    """
    matches = [(start + len(mark), start, mark) for mark in marks if (start := text.find(mark)) >= 0]
    if not matches:
        return None
    _, start, mark = min(matches)
    return start, mark


def undecided(text: str, marks: Iterable[str]) -> int:
    """Return the length of the longest end of `text` that may be the beginning of a mark."""
    return max((_overlap(text, mark) for mark in marks), default=0)


def _overlap(text: str, mark: str) -> int:
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
