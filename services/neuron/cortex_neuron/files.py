"""Where a model's weights are: from a catalogue entry to a path on this machine, or to a hub's repository."""

import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cortex_proto.catalogue import Model
from cortex_proto.errors import LoadFailedError

_PACKAGE = "package:"
_HUB = "hf:"
_REPO = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_FORMS = "a path, hf:<org>/<name> or package:<module>/<file>"
_DTYPES = {
    "f32": "float32",
    "fp32": "float32",
    "float32": "float32",
    "f16": "float16",
    "fp16": "float16",
    "float16": "float16",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
}


@dataclass(frozen=True, slots=True)
class Weights:
    """A HF directory or one .gguf file, and the dtype to compute in, if the catalogue names one."""

    path: Path
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository of the Hugging Face hub, and what is wanted of it."""

    name: str
    """As the hub has it: org/name."""
    revision: str = "main"
    quant: str = ""
    """Part of the name of the one .gguf file; empty: the safetensors, if it has any."""
    dtype: str | None = None


def locate(model: Model, base: Path) -> Weights | Repo:
    """Find the weights of `model`; a relative path is relative to `base`.

    A `quant` that names a dtype ("bf16") says what to compute in; any other is part of the name
    of a .gguf file. A model without `source` is a path if there is such a one, else a hub's id.

    Raises:
        LoadFailedError: there is nothing usable there; the text says what was looked for.
    """
    quant = model.quant or ""
    dtype = _DTYPES.get(quant.lower())
    part = "" if dtype else quant
    place = _place(model, base)
    if not isinstance(place, Path):
        return Repo(place[1], place[2] or "main", part, dtype)
    if not place.exists():
        raise LoadFailedError(f"{place} does not exist on this node (model {model.id!r})")
    return Weights(_choose(place, part), dtype)


def choose_gguf(files: Iterable[str], quant: str, where: str) -> str:
    """Choose the one of the .gguf `files` that has `quant` in its name; `where` they are is for the refusal.

    Raises:
        LoadFailedError: there is none, or there are several.
    """
    names = sorted(files)
    fitting = [name for name in names if quant.lower() in name.rpartition("/")[2].lower()]
    if len(fitting) == 1:
        return fitting[0]
    if not names:
        wanted = (
            f"no .gguf file, as quant {quant!r} needs" if quant else "neither config.json nor a .gguf file"
        )
        raise LoadFailedError(f"{where} has {wanted}")
    there = ", ".join(names)
    if not fitting:
        raise LoadFailedError(f"no .gguf file in {where} has {quant!r} in its name; there are: {there}")
    raise LoadFailedError(f"{where} has several files for quant {quant!r}, name one of them: {there}")


def _place(model: Model, base: Path) -> Path | re.Match[str]:
    """Tell a path from a hub's id and revision."""
    source = model.source or str(model.id)
    if source.startswith(_PACKAGE):
        return _in_package(source)
    path = base / Path(source).expanduser()
    is_remote = source.startswith(_HUB) or (model.source is None and not path.exists())
    if is_remote and (repo := _REPO.fullmatch(source.removeprefix(_HUB))):
        return repo
    if model.source is None and not path.exists():
        raise LoadFailedError(
            f"model {model.id!r} names no `source`, and is neither a path nor an id of the hub; use {_FORMS}"
        )
    if ":" in source.partition("/")[0]:
        raise LoadFailedError(f"source {source!r} is not understood: use {_FORMS}")
    return path


def _in_package(source: str) -> Path:
    """Find a file that an installed package brings, without importing the package."""
    name, _, file = source.removeprefix(_PACKAGE).partition("/")
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise LoadFailedError(f"the package {name!r} of source {source!r} is not installed on this node")
    return Path(next(iter(spec.submodule_search_locations))) / file


def _choose(path: Path, quant: str) -> Path:
    """Choose among .gguf files by `quant`; without one, a directory with config.json is taken whole."""
    if not path.is_dir():
        return path.parent / choose_gguf([path.name], quant, str(path.parent))
    if not quant and (path / "config.json").exists():
        return path
    return path / choose_gguf((file.name for file in path.glob("*.gguf")), quant, str(path))
