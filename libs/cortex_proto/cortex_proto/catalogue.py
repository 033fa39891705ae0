"""The models a fleet may serve: `models.toml`, decoded and checked."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from cortex_proto.errors import BadRequestError
from cortex_proto.ids import ModelId, NodeId, token

MIB = 1024 * 1024
DEFAULT_PRIORITY = 100
PINNED_PRIORITY = 1000


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Token limits; `None` leaves it to the checkpoint."""

    context: int | None = None
    input: int | None = None
    output: int | None = None


class Cost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """US dollars per million tokens. No block means "unknown", an explicit 0 means "free"."""

    input: float
    output: float
    cache_read: float | None = None
    cache_write: float | None = None


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One `[[models]]` entry."""

    id: ModelId
    source: str | None = None
    """Where the weights are: a path, `hf:<org>/<name>[@<revision>]`, `package:<module>/<file>`.

    None: the id is a path, or, where no such path exists, an id of the Hugging Face hub."""
    quant: str | None = None
    vram_mb: int | None = None
    """What the whole model needs, in MiB over all devices; None: the neuron estimates."""
    min_devices: int = 1
    min_device_vram_mb: int | None = None
    pinned_on: tuple[str, ...] = ()
    """Nodes it may run on; it is never evicted there."""
    residency_priority: int | None = None
    """Its class: a model displaces its own class or lower, never higher. 100; 1000 if pinned."""
    limit: Limit = Limit()
    cost: Cost | None = None
    capabilities: tuple[str, ...] = ()

    @property
    def priority(self) -> int:
        """The residency class, with its default."""
        if self.residency_priority is not None:
            return self.residency_priority
        return PINNED_PRIORITY if self.pinned_on else DEFAULT_PRIORITY

    @property
    def declared_bytes(self) -> int:
        """What the catalogue says the model needs; 0 if it does not say."""
        return (self.vram_mb or 0) * MIB

    def is_pinned_on(self, node: NodeId) -> bool:
        """Whether the model, once on `node`, stays there."""
        return node in self.pinned_on


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All of `models.toml`: the models, and other names for them."""

    models: tuple[Model, ...] = ()
    aliases: Mapping[str, ModelId] = {}

    def __iter__(self) -> Iterator[Model]:
        """Iterate over the models, in the order of the file."""
        return iter(self.models)

    def get(self, name: str) -> Model | None:
        """Find a model by its id or an alias."""
        wanted = self.aliases.get(name, name)
        return next((m for m in self.models if m.id == wanted), None)


class CatalogueError(ValueError):
    """`models.toml` cannot be used; the text says why and where."""


def parse(text: str) -> Catalogue:
    """Read `models.toml`.

    Raises:
        CatalogueError: no TOML, an unknown or mistyped key, a double id, an alias to nowhere.
    """
    try:
        tree = msgspec.toml.decode(text)
    except msgspec.DecodeError as error:
        raise CatalogueError(str(error)) from error
    try:
        catalogue = msgspec.convert(tree, Catalogue)
    except msgspec.ValidationError as error:
        raise CatalogueError(_in_plain_words(str(error), tree)) from error
    _check(catalogue)
    return catalogue


def _in_plain_words(reason: str, tree: Any) -> str:
    text = re.sub(r"`\$\.?", "`", reason.replace("Object contains unknown field", "unknown key"))
    at = re.search(r"`models\[(\d+)\]", text)
    entry = tree["models"][int(at[1])] if at else None
    return f"model {entry['id']!r}: {text}" if isinstance(entry, dict) and "id" in entry else text


def _check(catalogue: Catalogue) -> None:
    seen: set[str] = set()
    for model in catalogue.models:
        _check_name(model.id)
        if model.id in seen:
            raise CatalogueError(f"model {model.id!r} is listed twice")
        if model.min_devices < 1:
            raise CatalogueError(f"model {model.id!r}: min_devices is at least 1")
        seen.add(model.id)
    for alias, target in catalogue.aliases.items():
        _check_name(alias)
        if target not in seen:
            raise CatalogueError(f"alias {alias!r} points to {target!r}, which is not listed")
        if alias in seen:
            raise CatalogueError(f"alias {alias!r} is also the id of a model")


def _check_name(name: str) -> None:
    try:
        token(name)
    except BadRequestError as error:
        raise CatalogueError(f"{name!r}: {error}") from error
