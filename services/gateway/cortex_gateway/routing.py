"""Which replica serves the next request: a table of what the neurons report, and one choice."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from cortex_proto.fleet import LOAD_LIMIT_S, Draining, Loading, LoadRefused, Ready, Replica, Unloaded
from cortex_proto.ids import ModelId, NodeId


@dataclass(frozen=True, slots=True)
class Choice:
    """The request goes to `node`."""

    node: NodeId
    because: str


@dataclass(frozen=True, slots=True)
class NoReplica:
    """Nothing can serve the request yet."""

    because: str


class Replicas:
    """The replicas heard of, and the requests this gateway has on each of them."""

    def __init__(self) -> None:
        self._heard: dict[ModelId, dict[NodeId, tuple[Replica, float]]] = {}
        self._in_flight: Counter[tuple[ModelId, NodeId]] = Counter()

    def hear(self, replica: Replica, now_s: float) -> None:
        """Remember how a replica stands; an unloaded one is forgotten."""
        if isinstance(replica.state, Unloaded):
            self.drop(replica.model, replica.node)
            return
        self._heard.setdefault(replica.model, {})[replica.node] = (replica, now_s)

    def drop(self, model: ModelId, node: NodeId) -> None:
        """Forget a replica until it is heard of again."""
        of_model = self._heard.get(model, {})
        of_model.pop(node, None)
        if not of_model:
            self._heard.pop(model, None)

    def begin(self, model: ModelId, node: NodeId) -> None:
        """Count a request in that is sent there now."""
        self._in_flight[model, node] += 1

    def end(self, model: ModelId, node: NodeId) -> None:
        """Count a request out that `begin` counted in."""
        self._in_flight[model, node] -= 1
        if not self._in_flight[model, node]:
            del self._in_flight[model, node]

    def known(self, model: ModelId, now_s: float) -> tuple[Replica, ...]:
        """Return the replicas of `model` that were heard of lately, by node."""
        heard = self._heard.get(model, {})
        return tuple(heard[n][0] for n in sorted(heard) if now_s - heard[n][1] <= LOAD_LIMIT_S)

    def choose(self, model: ModelId, tried: Collection[NodeId], now_s: float) -> Choice | NoReplica:
        """Choose the least busy replica that is ready; the smaller node id wins a tie.

        Nodes in `tried` come into question only if there is no other.
        """
        known = self.known(model, now_s)
        ready = {r.node: r.state for r in known if isinstance(r.state, Ready)}
        if not ready:
            return NoReplica(_what_is_missing(known))
        fresh = {n: s for n, s in ready.items() if n not in tried} or ready
        load = {n: s.running + s.waiting + self._in_flight[model, n] for n, s in fresh.items()}
        node = min(load, key=lambda n: (load[n], n))
        return Choice(node, f"least busy of {len(fresh)} ready, {load[node]} requests on it")


def _what_is_missing(known: tuple[Replica, ...]) -> str:
    notes = [_note(replica) for replica in known]
    return max(notes)[1] if notes else "waiting for a place"


def _note(replica: Replica) -> tuple[float, str]:
    """Say how a replica that is not ready stands, after how near it is to being so."""
    match replica.state:
        case Loading(stage=stage, progress=progress):
            return 1 + progress, f"loading {progress * 100:.0f} % ({stage})"
        case LoadRefused(because=because):
            return 1, f"{replica.node} refused: {because}"
        case Draining() | Ready() | Unloaded():
            return 0, "waiting for a place"
