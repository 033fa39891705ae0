"""Which page of the key-value memory belongs to whom, and which can be read again."""

import re
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from cortex_neuron.model.spec import PAGE

_BLANK = re.compile(b"\x01+")
_KEY_BYTES = 16


class Chain:
    """The keys of a growing sequence's full pages; each stands for all tokens up to its end.

    Pages are one another's equal when their keys are: same tokens, same past, same `salt`.
    """

    def __init__(self, salt: str) -> None:
        self._keys: list[bytes] = []
        self._root = _key(b"", salt.encode())

    def keys(self, tokens: Sequence[int], count: int) -> list[bytes]:
        """Give the keys of the first `count` pages; `tokens` may only have grown since the last call."""
        keys = self._keys
        for page in range(len(keys), count):
            content = array("i", tokens[page * PAGE : (page + 1) * PAGE]).tobytes()
            keys.append(_key(keys[-1] if keys else self._root, content))
        return keys[:count]


def _key(parent: bytes, content: bytes) -> bytes:
    return blake2b(parent + content, digest_size=_KEY_BYTES).digest()


class Pages:
    """Hands out pages, and remembers what the full ones hold for as long as nobody needs the room.

    A page is held by one owner or, once it is published under the key of its content, by many; or
    it is cached: published and held by nobody; or it is blank. Nothing cached is lost while a
    blank page is left. Then the one that was let go first makes room.

    Attention reads a run of adjacent pages without copying it. So whoever grows gets the page
    after its last one if that is blank, and whoever is new starts in the middle of the widest gap:
    both it and the owner in front of the gap have room to grow. When no page is blank, one that
    grows takes the place of a cached neighbour, unless that was let go lately. Only adjacency is
    at stake; any free page serves.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._num_blank = total
        self._is_blank = bytearray(b"\x01" * total)
        self._num_owners = [0] * total
        self._key_of: list[bytes | None] = [None] * total
        self._by_key: dict[bytes, int] = {}
        self._cached: OrderedDict[int, int] = OrderedDict()
        """Page to the time it was let go, oldest first; one more than the last for each."""
        self._time = 0

    @property
    def free(self) -> int:
        """Pages that nobody holds, the cached included."""
        return self._num_blank + len(self._cached)

    @property
    def cached(self) -> int:
        """Pages that nobody holds and whose content is still known."""
        return len(self._cached)

    def num_owners(self, page: int) -> int:
        """Count those that hold `page`."""
        return self._num_owners[page]

    def find(self, keys: Iterable[bytes]) -> tuple[int, ...]:
        """Find the pages published under the first of `keys`, up to the first that is not there."""
        pages = []
        for key in keys:
            if (page := self._by_key.get(key)) is None:
                break
            pages.append(page)
        return tuple(pages)

    def room(self, found: Iterable[int]) -> int:
        """Count the pages that will be free once the pages `found` are held."""
        return self.free - sum(1 for page in found if not self._num_owners[page])

    def hold(self, pages: Iterable[int]) -> None:
        """Become one more owner of published pages."""
        for page in pages:
            assert self._key_of[page] is not None, f"page {page} is not published"
            self._cached.pop(page, None)
            self._num_owners[page] += 1

    def take(self, count: int, after: int | None = None) -> tuple[int, ...]:
        """Take `count` pages that continue page `after`, or start anew; the caller knows they are free."""
        assert count <= self.free, f"{count} pages asked, {self.free} free"
        taken: list[int] = []
        place = None if after is None else after + 1
        while len(taken) < count:
            if place is None or not self._gives_way(place):
                place = self._start(count - len(taken))
            if place in self._cached:
                self._forget(place)
            taken.append(place)
            self._is_blank[place] = 0
            self._num_blank -= 1
            self._num_owners[place] = 1
            place += 1
        return tuple(taken)

    def publish(self, page: int, key: bytes) -> None:
        """Let others find `page`, which is full and never written again; the first of equals is found."""
        if key not in self._by_key:
            self._by_key[key] = page
            self._key_of[page] = key

    def give_back(self, pages: Sequence[int]) -> None:
        """Let go of `pages` of one sequence; its end is reused before what it may share with others."""
        for page in reversed(pages):
            assert self._num_owners[page], f"page {page} is free already"
            self._num_owners[page] -= 1
            if self._num_owners[page]:
                continue
            if self._key_of[page] is None:
                self._clear(page)
            else:
                self._time += 1
                self._cached[page] = self._time

    def _gives_way(self, place: int) -> bool:
        """Whether a sequence that ends in front of `place` goes on there."""
        if place >= self.total or self._num_owners[place]:
            return False
        if self._num_blank:
            return bool(self._is_blank[place])
        oldest = next(iter(self._cached.values()))
        return 2 * self._cached[place] <= oldest + self._time

    def _start(self, count: int) -> int:
        """Find where `count` pages best begin: in the widest gap, the first of equals."""
        while self._num_blank < count:
            self._forget(next(iter(self._cached)))
        gap = max(_BLANK.finditer(self._is_blank), key=lambda run: run.end() - run.start())
        start, stop = gap.span()
        if start == 0:  # nobody in front needs room
            return 0
        return start + max(0, (stop - start - count) // 2)

    def _forget(self, page: int) -> None:
        """Make a cached page blank."""
        del self._cached[page]
        key = self._key_of[page]
        assert key is not None
        del self._by_key[key]
        self._key_of[page] = None
        self._clear(page)

    def _clear(self, page: int) -> None:
        self._is_blank[page] = 1
        self._num_blank += 1
