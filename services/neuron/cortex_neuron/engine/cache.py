"""Which page of the key-value memory belongs to whom."""

import re
from collections.abc import Iterable

_FREE = re.compile(b"\x01+")


class Pages:
    """Hands out pages so that the pages of one owner are adjacent where that can be had.

    Attention reads a run of adjacent pages without copying it. So whoever grows gets the page
    after its last one if that is free, and whoever is new starts in the middle of the widest gap:
    both it and the owner in front of the gap have room to grow. Only adjacency is at stake; any
    free page serves.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self._is_free = bytearray(b"\x01" * total)

    def take(self, count: int, after: int | None = None) -> tuple[int, ...]:
        """Take `count` pages that continue page `after`, or start anew; the caller knows they are free."""
        assert count <= self.free, f"{count} pages asked, {self.free} free"
        taken: list[int] = []
        place = None if after is None else after + 1
        while len(taken) < count:
            if place is None or place >= self.total or not self._is_free[place]:
                place = self._start(count - len(taken))
            taken.append(place)
            self._is_free[place] = 0
            self.free -= 1
            place += 1
        return tuple(taken)

    def give_back(self, pages: Iterable[int]) -> None:
        """Make `pages` free again."""
        for page in pages:
            assert not self._is_free[page], f"page {page} is free already"
            self._is_free[page] = 1
            self.free += 1

    def _start(self, count: int) -> int:
        """Find where `count` pages best begin: in the widest gap, the first of equals."""
        gap = max(_FREE.finditer(self._is_free), key=lambda run: run.end() - run.start())
        start, stop = gap.span()
        if start == 0:  # nobody in front needs room
            return 0
        return start + max(0, (stop - start - count) // 2)
