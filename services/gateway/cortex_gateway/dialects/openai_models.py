"""The OpenAI list of models, with what cortex knows beyond it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from cortex_proto.catalogue import Catalogue, Cost, Limit, Model
from cortex_proto.errors import ModelUnknownError
from cortex_proto.fleet import Ready, Replica, Status
from cortex_proto.ids import ModelId, NodeId


class Location(msgspec.Struct, frozen=True):
    """One replica."""

    node: NodeId
    status: Status


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One model, or another name for one; what is not known is left out."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "cortex"
    loaded: bool
    locations: tuple[Location, ...]
    max_model_len: int | UnsetType = UNSET
    limit: Limit | UnsetType = UNSET
    cost: Cost | UnsetType = UNSET
    capabilities: tuple[str, ...] | UnsetType = UNSET


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All models, then all aliases."""

    object: Literal["list"] = "list"
    data: tuple[ModelEntry, ...]


@dataclass(frozen=True, slots=True)
class Models:
    """Writes entries for what is in the catalogue."""

    catalogue: Catalogue
    replicas: Callable[[ModelId], tuple[Replica, ...]]
    created_s: int

    def all(self) -> ModelList:
        """List every model and alias."""
        return ModelList(data=tuple(self._entries()))

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
            id=name,
            created=self.created_s,
            loaded=bool(contexts),
            locations=tuple(Location(r.node, r.status) for r in replicas),
            max_model_len=min(contexts, default=model.limit.context) or UNSET,
            limit=model.limit if model.limit != Limit() else UNSET,
            cost=model.cost or UNSET,
            capabilities=model.capabilities or UNSET,
        )
