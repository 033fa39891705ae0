"""Tells what a model thinks from what it answers, by the marks it puts around its thoughts."""

from collections.abc import Sequence
from dataclasses import dataclass

from cortex_neuron.text.match import first_match, undecided
from cortex_proto.generation import ReasoningDelta, TextDelta


@dataclass(frozen=True, slots=True)
class Marks:
    """What opens a block, and what closes it."""

    open: str
    close: str


THOUGHTS = (
    Marks("<think>", "</think>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<thought>", "</thought>"),
    Marks("<reasoning>", "</reasoning>"),
)
"""The marks that models are known to use; one model uses one kind."""


class Reasoning:
    """Sorts a text that comes in pieces into thoughts and answer; the marks themselves vanish.

    A block may open anywhere; one that never closes is thought to its end. White space next to a
    mark is dropped. Inside the `opaque` blocks, which belong to others, nothing is looked for.
    """

    def __init__(self, marks: Marks | None, *, is_open: bool = False, opaque: Sequence[Marks] = ()) -> None:
        self._marks = marks
        self._opaque = {block.open: block.close for block in opaque}
        self._opaque_close: str | None = None
        self._held = ""
        self._is_fresh = True
        """Nothing but white space has come since the beginning, or since the last mark."""
        self._is_first = not is_open
        """No mark has come yet."""
        self.is_inside = is_open and marks is not None
        """Whether what comes next is a thought."""

    def take(self, piece: str) -> list[ReasoningDelta | TextDelta]:
        """Take in the next piece; return what is certain."""
        if self._marks is None:
            return [TextDelta(piece)] if piece else []
        self._held += piece
        deltas: list[ReasoningDelta | TextDelta] = []
        while match := first_match(self._held, self._watched(self._marks)):
            start, mark = match
            before, self._held = self._held[:start], self._held[start + len(mark) :]
            deltas += self._say(self._trimmed(before))
            deltas += self._cross(mark, self._marks)
        return deltas + self._say(self._release(self._marks))

    def finish(self) -> list[ReasoningDelta | TextDelta]:
        """Return what was held back: the text is over."""
        held, self._held = self._held, ""
        return self._say(held)

    def _watched(self, marks: Marks) -> tuple[str, ...]:
        if self._opaque_close is not None:
            return (self._opaque_close,)
        own = (marks.open, marks.close)
        return own if self.is_inside else (*own, *self._opaque)

    def _cross(self, mark: str, marks: Marks) -> list[ReasoningDelta | TextDelta]:
        """Go past a mark; only one of an opaque block is handed on."""
        if mark not in (marks.open, marks.close):
            said = self._say(mark)
            self._opaque_close = None if self._opaque_close else self._opaque[mark]
            return said
        self.is_inside = mark == marks.open
        self._is_fresh = True
        self._is_first = False
        return []

    def _release(self, marks: Marks) -> str:
        """Cut off the part of the held text that no later piece can turn into something else."""
        end = len(self._held) - undecided(self._held, self._watched(marks))
        text = self._trimmed(self._held[:end])
        self._held = self._held[len(text) :]
        return text

    def _trimmed(self, text: str) -> str:
        """Leave out the white space that would stand before a mark."""
        return text.rstrip() if self.is_inside or (self._is_fresh and text.isspace()) else text

    def _say(self, text: str) -> list[ReasoningDelta | TextDelta]:
        if self._is_fresh and not self._is_first:
            text = text.lstrip()
        if not text:
            return []
        self._is_fresh = False
        return [ReasoningDelta(text) if self.is_inside else TextDelta(text)]
