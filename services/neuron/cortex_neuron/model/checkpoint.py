"""Weights from files into the parameters of a model: each tensor is read once, in file order.

Names and shapes are compared before anything is allocated or read, so a checkpoint that does not
fit is refused at once and never half loaded. A rank reads only its own part of each tensor.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from safetensors import safe_open

from cortex_neuron.model import hf_directory
from cortex_neuron.model.places import Place, Source
from cortex_neuron.model.spec import HEAD_WEIGHT
from cortex_proto.errors import LoadFailedError

OnProgress = Callable[[str, float], None]
"""Told the stage, and how much of it is done, from 0 to 1."""
_MOST_NAMED = 8


class Checkpoint(Protocol):
    """A source of weights under their Hugging Face names."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor, from the header."""
        ...

    def tensors(self) -> Iterator[tuple[str, Source]]:
        """Give each tensor once, in file order, to be read in parts."""
        ...


class SafetensorsDirectory:
    """The safetensors files of a Hugging Face directory; parts of tensors are views of the mapped files."""

    def __init__(self, path: Path) -> None:
        self.files = hf_directory.weight_files(path)
        self.shapes = hf_directory.read_shapes(path)

    def tensors(self) -> Iterator[tuple[str, Source]]:
        """Give each tensor once, in file order; nothing is read before a part is asked for."""
        for file in self.files:
            with safe_open(file, framework="pt") as opened:
                for name in opened.offset_keys():
                    yield name, opened.get_slice(name)


def check(places: Mapping[str, Place], checkpoint: Checkpoint) -> None:
    """Compare names and shapes; the places may be on the device "meta".

    Raises:
        LoadFailedError: tensors without a place, places without a tensor, or shapes that differ;
            the text names them.
    """
    _check_names(places, checkpoint.shapes)
    _check_shapes(places, checkpoint.shapes)


def fill(places: Mapping[str, Place], checkpoint: Checkpoint, on_progress: OnProgress) -> int:
    """Copy a part of every tensor to its place; returns how many bytes of the checkpoint that were."""
    total = sum(place.part.numel() for place in places.values())
    done = 0
    num_bytes = 0
    for name, source in checkpoint.tensors():
        if place := places.get(name):
            num_bytes += place.fill(source)
            done += place.part.numel()
            on_progress("reading weights", done / total)
    return num_bytes


def _check_names(places: Mapping[str, Place], shapes: Mapping[str, tuple[int, ...]]) -> None:
    missing = [name for name in places if name not in shapes]
    unread = [name for name in shapes if name not in places and not _is_superfluous(name)]
    if missing or unread:
        raise LoadFailedError(
            f"the checkpoint does not fit the model; missing: {_listed(missing)}; unread: {_listed(unread)}"
        )


def _is_superfluous(name: str) -> bool:
    """Whether a tensor without a place says nothing new: a copy of the tied table, a buffer of old Llamas."""
    return name == HEAD_WEIGHT or name.endswith(".rotary_emb.inv_freq")


def _check_shapes(places: Mapping[str, Place], shapes: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [
        f"{name} is {list(shapes[name])}, not {list(place.shape)}"
        for name, place in places.items()
        if shapes[name] != place.shape
    ]
    if wrong:
        raise LoadFailedError(f"the checkpoint does not fit the model; {_listed(wrong)}")


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED]) or "none"
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"
