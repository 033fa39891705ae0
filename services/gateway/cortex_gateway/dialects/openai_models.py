"""The OpenAI list of models, with what cortex knows beyond it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from cortex_proto.catalogue import Catalogue, Cost, Limit, Model
from cortex_proto.errors import ModelUnknownError
from cortex_proto.fleet import Draining, Loading, LoadRefused, Ready, Replica, ReplicaState
from cortex_proto.ids import ModelId, NodeId


class Location(msgspec.Struct, frozen=True):
    """One replica."""

    node: NodeId
    status: Literal["loaded", "loading", "draining", "refused", "unloaded"]


class ModelEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model, or another name for one; what is not known is left out."""

    id: str
    created: int
    loaded: bool
    locations: tuple[Location, ...]
    object: str
    owned_by: str
    limit: Limit = Limit()
    cost: Cost | None = None
    capabilities: tuple[str, ...] = ()
    max_model_len: int | None = None


class ModelList(msgspec.Struct, frozen=True):
    """All models, then all aliases."""

    data: tuple[ModelEntry, ...]
    object: Literal["list"] = "list"


@dataclass(frozen=True, slots=True)
class Models:
    """Writes entries for what is in the catalogue."""

    catalogue: Catalogue
    replicas: Callable[[ModelId], tuple[Replica, ...]]
    created_s: int

    def all(self) -> ModelList:
        """List every model and alias."""
        return ModelList(tuple(self._entries()))

    def one(self, name: str) -> ModelEntry:
        """Describe one.

        Raises:
            ModelUnknownError: there is no such model or alias.
        """
        model = self.catalogue.get(name)
        if model is None:
            raise ModelUnknownError(f"model {name!r} does not exist; /v1/models lists those that do")
        return self._entry(name, model)

    def _entries(self) -> Iterator[ModelEntry]:
        for model in self.catalogue:
            yield self._entry(model.id, model)
        for alias in self.catalogue.aliases:
            yield self.one(alias)

    def _entry(self, name: str, model: Model) -> ModelEntry:
        replicas = self.replicas(model.id)
        contexts = [r.state.context for r in replicas if isinstance(r.state, Ready)]
        return ModelEntry(
            name,
            self.created_s,
            bool(contexts),
            tuple(Location(r.node, _status(r.state)) for r in replicas),
            "model",
            "cortex",
            model.limit,
            model.cost,
            model.capabilities,
            min(contexts, default=model.limit.context),
        )


def _status(state: ReplicaState) -> Literal["loaded", "loading", "draining", "refused", "unloaded"]:
    match state:
        case Ready():
            return "loaded"
        case Loading():
            return "loading"
        case Draining():
            return "draining"
        case LoadRefused():
            return "refused"
    return "unloaded"
