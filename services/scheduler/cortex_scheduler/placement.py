"""Where a model goes: device by device, in a documented order, and always with the reason."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from cortex_proto.catalogue import MIB, Model
from cortex_proto.errors import LoadFailedError, NoRoomError, UnavailableError
from cortex_proto.fleet import LoadRefused, Share
from cortex_proto.ids import ModelId, NodeId
from cortex_proto.placement import MakeRoom, Resident


@dataclass(frozen=True, slots=True)
class Room:
    """One device, as the scheduler counts it."""

    device: int
    total_bytes: int
    free_bytes: int
    """Less what is promised to models on their way in, plus what those on their way out will leave."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A model that should stay on the node, with its bytes on each device."""

    resident: Resident
    shares: tuple[Share, ...]

    def on(self, device: int) -> int:
        """Return its bytes on `device`."""
        return sum(s.bytes for s in self.shares if s.device == device)


@dataclass(frozen=True, slots=True)
class Site:
    """One live node, as a place for one model."""

    node: NodeId
    rooms: tuple[Room, ...]
    tenants: tuple[Tenant, ...] = ()
    need_bytes: int = 0
    """Of the model on this node, over all devices; 0: nobody knows yet, so it is tried."""
    guessed: bool = False
    """`need_bytes` is what it once took with room to spare, so it may do with less."""
    refused: LoadRefused | None = None
    """The node's last word on the model, while it is too early to try again."""


@dataclass(frozen=True, slots=True)
class Place:
    """The model goes to `node`, after `victims` have left it."""

    node: NodeId
    devices: tuple[int, ...]
    because: str
    victims: tuple[ModelId, ...] = ()


@dataclass(frozen=True, slots=True)
class Displace:
    """Others must leave first, on one of these sites, the best first."""

    sites: tuple[Site, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to be done now, but it will pass."""

    because: str


Decision = Place | Displace | Wait


def place(model: Model, sites: Sequence[Site]) -> Decision:
    """Decide where `model` goes.

    Only nodes it may run on count: named by `pinned_on` if that names any, with `min_devices`
    devices of at least `min_device_vram_mb` and at least its share in all. Among them, in this order:
    the tightest fit, so that roomy nodes stay free for big models (of unknown size: the freest node,
    which will say what it needs); the node where room is made with the least effort, idle models
    before busy ones, then fewest bytes; last, nodes that refused it a moment ago, which are
    not tried again yet. Ties go to the smaller node id. Where only a guess of its size says that it
    fits nowhere, it is tried as one of unknown size.

    Raises:
        UnavailableError: no node is alive.
        LoadFailedError: it would go where it failed a moment ago, for another reason than memory.
        NoRoomError: it fits nowhere, even after evicting; the text has the numbers of each node.
    """
    if not sites:
        raise UnavailableError("no node is alive")
    possible = [s for s in sites if _is_possible(model, s)]
    if not possible:
        unsure = (replace(s, need_bytes=0, guessed=False) for s in sites if s.guessed)
        possible = [s for s in unsure if _is_possible(model, s)]
    if not possible:
        raise NoRoomError("; ".join(f"{s.node}: {_why_not(model, s)}" for s in _by_name(sites)))
    willing = [s for s in possible if not s.refused]
    return _fill(model, willing) or _displace(model, willing) or _refused(possible)


def fit(model: Model, site: Site) -> tuple[int, ...] | None:
    """Choose the freest devices for `model`, one per rank; None if it has no room there now."""
    big_enough = [r for r in site.rooms if r.total_bytes >= (model.min_device_vram_mb or 0) * MIB]
    freest = sorted(big_enough, key=lambda r: (-r.free_bytes, r.device))[: model.min_devices]
    if len(freest) < model.min_devices:
        return None
    if site.need_bytes and freest[-1].free_bytes < _each_bytes(model, site):
        return None
    return tuple(sorted(r.device for r in freest))


def question(model: Model, site: Site) -> MakeRoom:
    """Ask for room on that one of the devices meant for `model` which lacks the most.

    A model over many devices needs as many questions; each names the residents of one device only.
    """
    each = _each_bytes(model, site)
    short = {d: each - _free(site, (d,)) for d in _targets(model, site)}
    device = max(sorted(short), key=lambda d: short[d])
    residents = tuple(_resident_on(t, device) for t in site.tenants if t.on(device))
    return MakeRoom(site.node, model.id, model.priority, short[device], residents)


def dismiss(model: Model, site: Site, victims: Collection[ModelId]) -> Site:
    """Return `site` as it will be without `victims`; only those who may leave now count.

    The evictor proposes, the scheduler disposes: a busy or pinned model, or one of a higher class
    than `model`, stays, whoever names it.
    """
    idle = _displaceable(model, site, busy_too=False)
    return _without(site, [t for t in idle if t.resident.model in victims])


def _fill(model: Model, sites: Sequence[Site]) -> Place | None:
    fits = [(s, devices) for s in sites if (devices := fit(model, s))]
    if not fits:
        return None
    known = any(s.need_bytes for s, _ in fits)
    site, devices = min(fits, key=lambda f: (_free(*f) - f[0].need_bytes if known else -_free(*f), f[0].node))
    free = f"{_mib(_free(site, devices))} free on {site.node}"
    if not known:
        return Place(site.node, devices, f"its size is unknown; most room of {len(fits)} nodes: {free}")
    because = f"tightest of {len(fits)} nodes with room: needs {_mib(site.need_bytes)} of {free}"
    return Place(site.node, devices, because)


def _displace(model: Model, sites: Sequence[Site]) -> Displace | None:
    return Displace(tuple(sorted(sites, key=lambda s: _effort(model, s)))) if sites else None


def _refused(sites: Sequence[Site]) -> Wait:
    words = "; ".join(f"{s.node}: {s.refused.because}" for s in _by_name(sites) if s.refused)
    if all(s.refused and s.refused.need_bytes for s in sites):
        return Wait(f"refused for want of memory a moment ago, to be tried again: {words}")
    raise LoadFailedError(words)


def _effort(model: Model, site: Site) -> tuple[bool, int, NodeId]:
    devices = fit(model, _without(site, _displaceable(model, site, busy_too=False)))
    each = _each_bytes(model, site)
    chosen = devices or _targets(model, site)
    return (devices is None, sum(max(0, each - _free(site, (d,))) for d in chosen), site.node)


def _targets(model: Model, site: Site) -> tuple[int, ...]:
    """Choose the devices for `model` once all whom it may displace have left; idle ones if they do."""
    for busy_too in (False, True):
        if devices := fit(model, _without(site, _displaceable(model, site, busy_too=busy_too))):
            return devices
    return ()


def _displaceable(model: Model, site: Site, *, busy_too: bool) -> list[Tenant]:
    return [
        t
        for t in site.tenants
        if not t.resident.pinned
        and t.resident.priority <= model.priority
        and (busy_too or not t.resident.busy)
    ]


def _without(site: Site, leaving: Sequence[Tenant]) -> Site:
    rooms = tuple(
        replace(r, free_bytes=r.free_bytes + sum(t.on(r.device) for t in leaving)) for r in site.rooms
    )
    return replace(site, rooms=rooms, tenants=tuple(t for t in site.tenants if t not in leaving))


def _resident_on(tenant: Tenant, device: int) -> Resident:
    r = tenant.resident
    return Resident(r.model, tenant.on(device), r.priority, r.pinned, r.busy, r.idle_s)


def _is_possible(model: Model, site: Site) -> bool:
    return not _unsuitable(model, site) and bool(_targets(model, site))


def _unsuitable(model: Model, site: Site) -> str:
    """Say why `model` may never run on this node; empty if it may."""
    if model.pinned_on and not model.is_pinned_on(site.node):
        return f"it is pinned to {', '.join(model.pinned_on)}"
    floor_bytes = max((model.min_device_vram_mb or 0) * MIB, _each_bytes(model, site))
    num_fit = sum(r.total_bytes >= floor_bytes for r in site.rooms)
    if num_fit < model.min_devices:
        return f"it needs {model.min_devices} devices of {_mib(floor_bytes)} or more, and has {num_fit}"
    return ""


def _why_not(model: Model, site: Site) -> str:
    if reason := _unsuitable(model, site):
        return reason
    cleared = _without(site, _displaceable(model, site, busy_too=True))
    free, room = (sum(r.free_bytes for r in s.rooms) for s in (site, cleared))
    return (
        f"it needs {_mib(site.need_bytes)} on {model.min_devices} of {len(site.rooms)} devices; "
        f"{_mib(free)} are free, {_mib(room - free)} may be evicted, the rest is pinned or of a higher class"
    )


def _each_bytes(model: Model, site: Site) -> int:
    return -(-site.need_bytes // model.min_devices)


def _free(site: Site, devices: Collection[int]) -> int:
    return sum(r.free_bytes for r in site.rooms if r.device in devices)


def _by_name(sites: Iterable[Site]) -> list[Site]:
    return sorted(sites, key=lambda s: s.node)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:.0f} MiB"
