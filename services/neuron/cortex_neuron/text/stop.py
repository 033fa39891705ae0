"""Ends a text before a stop string, also one that comes in pieces."""

from collections.abc import Iterable

from cortex_neuron.text.match import first_match, undecided


class StopStrings:
    """Lets text through up to the first stop string.

    The match that is complete first wins; of several complete at the same place, the longest. So
    the result does not depend on how the text was cut into pieces. Text that may be the beginning
    of a stop string is held back until that is decided.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.hit: str | None = None
        """The stop string that ended the text; nothing passes after it."""

    def take(self, piece: str) -> str:
        """Take in the next piece; return the text that is certain to stay."""
        if self.hit is not None:
            return ""
        text = self._held + piece
        if match := first_match(text, self._stops):
            start, self.hit = match
            self._held = ""
            return text[:start]
        kept = len(text) - undecided(text, self._stops)
        self._held = text[kept:]
        return text[:kept]

    def finish(self) -> str:
        """Return what was held back: the text ended for another reason."""
        held, self._held = self._held, ""
        return held
