"""Which state of the recurrent layers belongs to whom, and which snapshots can be gone on from.

A recurrent layer keeps one state for a whole sequence, and it cannot be taken back to an earlier
token. So each running sequence owns a slot, and what it held at some page boundaries is copied
into snapshot slots, under the key of the page that ends there.

Slot 0 is scratch, for rows that nobody owns; the live slots follow, then the snapshots.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from cortex_neuron.engine.plan import Save


class States:
    """Hands out slots; when snapshots run out, the one that was not used for longest makes room.

    What has to be done to the slots gathers until the plan of a step takes it along: zeros and
    copies come before the step, saves after it. So a snapshot may be read and replaced in one step.
    """

    def __init__(self, num_slots: int, num_snapshots: int) -> None:
        self.num_snapshots = num_snapshots
        self._free = list(range(num_slots, 0, -1))
        self._free_snapshots = list(range(num_slots + num_snapshots, num_slots, -1))
        self._by_key: OrderedDict[bytes, int] = OrderedDict()
        """Least recently used first."""
        self._zeros: list[int] = []
        self._copies: list[tuple[int, int]] = []
        self._saves: list[Save] = []

    @property
    def num_free(self) -> int:
        """Live slots that nobody owns."""
        return len(self._free)

    @property
    def num_free_snapshots(self) -> int:
        """Snapshot slots with nothing in them that could be found."""
        return len(self._free_snapshots)

    def deepest(self, keys: Sequence[bytes]) -> int:
        """Count the pages of `keys` up to the last that a snapshot stands behind."""
        return next((count for count in range(len(keys), 0, -1) if keys[count - 1] in self._by_key), 0)

    def enter(self, key: bytes | None) -> int:
        """Take a live slot that goes on from the snapshot of `key`, or from nothing."""
        slot = self._free.pop()
        if key is None:
            self._zeros.append(slot)
        else:
            self._by_key.move_to_end(key)
            self._copies.append((self._by_key[key], slot))
        return slot

    def leave(self, slot: int) -> None:
        """Give a live slot back."""
        assert slot not in self._free, f"slot {slot} is free already"
        self._free.append(slot)

    def save(self, slot: int, key: bytes, instead: bytes | None = None) -> None:
        """Keep what `slot` holds after the step under `key`, in place of the snapshot `instead`."""
        if instead is not None and instead in self._by_key:
            self._free_snapshots.append(self._by_key.pop(instead))
        if key in self._by_key:
            self._by_key.move_to_end(key)
        elif (snapshot := self._room()) is not None:
            self._saves.append(Save(slot, snapshot, key))

    def due(self) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...], tuple[Save, ...]]:
        """Take what has gathered: zeros, copies, saves."""
        due = tuple(self._zeros), tuple(self._copies), tuple(self._saves)
        self._zeros, self._copies, self._saves = [], [], []
        return due

    def saved(self, saves: Iterable[Save]) -> None:
        """The step has run: these can be found; the first of equals is."""
        for save in saves:
            if save.key in self._by_key:
                self._free_snapshots.append(save.snapshot)
            else:
                self._by_key[save.key] = save.snapshot

    def lost(self, saves: Iterable[Save]) -> None:
        """The step has failed: nobody knows what these hold."""
        self._free_snapshots += [save.snapshot for save in saves]

    def _room(self) -> int | None:
        """Find a slot for a snapshot; None if all are being written."""
        if self._free_snapshots:
            return self._free_snapshots.pop()
        return self._by_key.popitem(last=False)[1] if self._by_key else None
