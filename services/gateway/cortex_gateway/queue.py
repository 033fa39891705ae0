"""How many requests may wait for one model at a time."""

from collections import Counter

from cortex_proto.errors import BusyError
from cortex_proto.ids import ModelId


class Waiting:
    """Counts the requests that wait for their model, and turns away those over the limit."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._counts: Counter[ModelId] = Counter()

    def join(self, model: ModelId) -> None:
        """Let one more request wait.

        Raises:
            BusyError: as many as may wait already do.
        """
        if self._counts[model] >= self._max_waiting:
            raise BusyError(
                f"{self._counts[model]} requests already wait for model {model!r}, "
                f"{self._max_waiting} may; try again in a few seconds"
            )
        self._counts[model] += 1

    def leave(self, model: ModelId) -> None:
        """Let one request go that `join` had let in."""
        self._counts[model] -= 1
        if not self._counts[model]:
            del self._counts[model]

    def count(self, model: ModelId) -> int:
        """Return how many wait for `model`."""
        return self._counts[model]
