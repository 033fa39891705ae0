"""Who holds how much of each device: a ledger in bytes, kept by the neuron alone.

A load reserves what it may need before anything is read, commits what it really took once it
runs, and releases that when its processes are gone. The ledger is the only gate: a device's own
reading of its free memory is never asked, because it lags behind what was just promised.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from cortex_proto.catalogue import MIB
from cortex_proto.fleet import Share
from cortex_proto.ids import ModelId


@dataclass(frozen=True, slots=True)
class Room:
    """One device as the ledger sees it; `label` is how people call it: "cpu:0"."""

    device: int
    label: str
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Shortage:
    """A reservation that was refused, with its numbers."""

    device: int
    need_bytes: int
    free_bytes: int
    because: str


class Ledger:
    """What each model holds of each device."""

    def __init__(self, rooms: Iterable[Room]) -> None:
        self._rooms = {room.device: room for room in rooms}
        self._held: dict[ModelId, dict[int, int]] = {}

    def total_bytes(self, device: int) -> int:
        """Return what may be used of `device`; 0 if there is no such device."""
        room = self._rooms.get(device)
        return room.total_bytes if room else 0

    def free_bytes(self, device: int) -> int:
        """Return what is left of `device`, never below 0."""
        held = sum(shares.get(device, 0) for shares in self._held.values())
        return max(0, self.total_bytes(device) - held)

    def shares(self, model: ModelId) -> tuple[Share, ...]:
        """Return what `model` holds, in the order of the devices."""
        return tuple(Share(device, size) for device, size in sorted(self._held.get(model, {}).items()))

    def shortage(self, device: int, need_bytes: int) -> Shortage | None:
        """Tell why `need_bytes` do not fit on `device`; None if they do."""
        room = self._rooms.get(device)
        if room is None:
            return Shortage(device, need_bytes, 0, f"there is no device {device} on this node")
        free_bytes = self.free_bytes(device)
        if need_bytes <= free_bytes:
            return None
        because = (
            f"needs {_mib_up(need_bytes)} MiB on {room.label}, "
            f"{free_bytes // MIB} MiB of {room.total_bytes // MIB} MiB free"
        )
        return Shortage(device, need_bytes, free_bytes, because)

    def reserve(self, model: ModelId, devices: Iterable[int], need_bytes: int) -> Shortage | None:
        """Set `need_bytes` of each device aside for `model`; all or nothing, None if it was done."""
        assert model not in self._held, f"{model} holds memory already"
        shares = dict.fromkeys(devices, need_bytes)
        for device in shares:
            if shortage := self.shortage(device, need_bytes):
                return shortage
        self._held[model] = shares
        return None

    def commit(self, model: ModelId, device: int, measured_bytes: int) -> None:
        """Take note of what `model` really took; it counts only if it is more than was reserved.

        This cannot be refused, for the memory is taken: the ledger may run over, and then has nothing free.
        """
        shares = self._held[model]
        shares[device] = max(shares.get(device, 0), measured_bytes)

    def release(self, model: ModelId) -> None:
        """Give back all that `model` holds; it may hold nothing."""
        self._held.pop(model, None)


@dataclass(frozen=True, slots=True)
class Need:
    """What a load takes of one device: a fixed part, and keys and values between two bounds."""

    fixed_bytes: int
    """Weights and workspace."""
    least_kv_bytes: int
    most_kv_bytes: int
    kv_page_bytes: int
    declared_bytes: int = 0
    """What the catalogue says; a lower bound on what is reserved."""

    @property
    def least_bytes(self) -> int:
        """The least that this load can do with."""
        return max(self.declared_bytes, self.fixed_bytes + self.least_kv_bytes)


@dataclass(frozen=True, slots=True)
class Fit:
    """How a load fits: the keys and values it gets, and what the ledger holds for it."""

    kv_bytes: int
    total_bytes: int
    because: str


def fit(need: Need, free_bytes: int) -> Fit:
    """Give a load as much room for keys and values as there is, up to what it wants.

    Where less than `need.least_bytes` is free the answer is the least, and the ledger will refuse it.
    """
    most_bytes = min(need.most_kv_bytes, free_bytes - need.fixed_bytes)
    kv_bytes = max(need.least_kv_bytes, most_bytes // need.kv_page_bytes * need.kv_page_bytes)
    total_bytes = max(need.declared_bytes, need.fixed_bytes + kv_bytes)
    if kv_bytes >= need.most_kv_bytes // need.kv_page_bytes * need.kv_page_bytes:
        return Fit(kv_bytes, total_bytes, "there is room for all keys and values wanted")
    because = f"keys and values shrunk from {need.most_kv_bytes // MIB} MiB to {kv_bytes // MIB} MiB to fit"
    return Fit(kv_bytes, total_bytes, because)


def _mib_up(size: int) -> int:
    """Round up, so that a refusal never says that 5 MiB do not fit into 5 MiB."""
    return -(-size // MIB)
