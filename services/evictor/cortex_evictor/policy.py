"""Who leaves a node when room is needed. Pure: the scheduler says how things stand, this says who goes."""

from collections.abc import Iterable, Sequence
from typing import Literal

from cortex_proto.catalogue import MIB
from cortex_proto.ids import ModelId
from cortex_proto.placement import MakeRoom, MakeRoomReply, NoVictims, Resident, Victims

Strategy = Literal["lru", "priority"]


def choose_victims(ask: MakeRoom, strategy: Strategy) -> MakeRoomReply:
    """Pick the models to unload so that `ask.need_bytes` become free.

    A pinned or busy model is never picked, nor one of a higher class than the incoming. `lru`: the
    least recently used first. `priority`: the lowest class first, within it the least recently used.
    Ties go to the smaller id. A victim that turns out to be superfluous, because a later and bigger
    one frees enough, is spared; the one that would have left last is spared first.
    """
    displaceable = [r for r in ask.residents if _may_be_displaced(r, ask)]
    idle = sorted((r for r in displaceable if not r.busy), key=lambda r: _order(r, strategy))
    victims = _spare(_take(idle, ask.need_bytes), ask.need_bytes)
    freed = _bytes(victims)
    if freed >= ask.need_bytes:
        return Victims(tuple(r.model for r in victims), _because(victims, ask, strategy))
    if _bytes(displaceable) >= ask.need_bytes:
        names = ", ".join(sorted(r.model for r in displaceable if r.busy))
        return NoVictims(f"{ask.node}: room can be made once {names} is idle", busy=True)
    return NoVictims(
        f"{ask.node}: {_mib(ask.need_bytes)} more are needed, and all that {ask.incoming} may displace "
        f"there (class {ask.priority} or lower, not pinned) is {_mib(_bytes(displaceable))}"
    )


def _may_be_displaced(resident: Resident, ask: MakeRoom) -> bool:
    return not resident.pinned and resident.priority <= ask.priority and resident.model != ask.incoming


def _order(resident: Resident, strategy: Strategy) -> tuple[int, float, ModelId]:
    rank = resident.priority if strategy == "priority" else 0
    return (rank, -resident.idle_s, resident.model)


def _take(idle: Iterable[Resident], need_bytes: int) -> list[Resident]:
    victims: list[Resident] = []
    for resident in idle:
        if _bytes(victims) >= need_bytes:
            break
        victims.append(resident)
    return victims


def _spare(victims: Sequence[Resident], need_bytes: int) -> list[Resident]:
    kept = list(victims)
    for resident in reversed(victims):
        if _bytes(kept) - resident.bytes >= need_bytes:
            kept.remove(resident)
    return kept


def _because(victims: Sequence[Resident], ask: MakeRoom, strategy: Strategy) -> str:
    if not victims:
        return f"{ask.node} has room already"
    rule = "least recently used" if strategy == "lru" else "lowest class, then least recently used"
    names = ", ".join(f"{r.model} (idle {r.idle_s:.0f} s)" for r in victims)
    return f"{rule}: {names}; frees {_mib(_bytes(victims))} where {_mib(ask.need_bytes)} are needed"


def _bytes(residents: Iterable[Resident]) -> int:
    return sum(r.bytes for r in residents)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:.0f} MiB"
