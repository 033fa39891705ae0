"""Where a model's weights are: from a catalogue entry to a path on this machine."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from cortex_proto.catalogue import Model
from cortex_proto.errors import LoadFailedError

_PACKAGE = "package:"
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


def locate(model: Model, base: Path) -> Weights:
    """Find the weights of `model`; a relative path is relative to `base`.

    A `quant` that names a dtype ("bf16") says what to compute in; any other is part of the name
    of a .gguf file.

    Raises:
        LoadFailedError: there is nothing usable there; the text says what was looked for.
    """
    path = _path(model, base)
    if not path.exists():
        raise LoadFailedError(f"{path} does not exist on this node (model {model.id!r})")
    quant = model.quant or ""
    dtype = _DTYPES.get(quant.lower())
    return Weights(_choose(path, "" if dtype else quant), dtype)


def _path(model: Model, base: Path) -> Path:
    source = model.source or str(model.id)
    if source.startswith(_PACKAGE):
        return _in_package(source)
    if ":" in source.partition("/")[0]:
        raise LoadFailedError(f"source {source!r} is not understood: use a path or package:<module>/<file>")
    path = base / Path(source).expanduser()
    if model.source is None and not path.exists():
        raise LoadFailedError(
            f"model {model.id!r} names no `source`, and downloads from a hub are not supported: "
            "set `source` to a path or package:<module>/<file>"
        )
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
    if path.is_dir() and not quant and (path / "config.json").exists():
        return path
    files = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
    if not files:
        wanted = (
            f"no .gguf file, as quant {quant!r} needs" if quant else "neither config.json nor a .gguf file"
        )
        raise LoadFailedError(f"{path} has {wanted}")
    fitting = [file for file in files if quant.lower() in file.name.lower()]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(file.name for file in files)
    if not fitting:
        raise LoadFailedError(f"no .gguf file in {path} has {quant!r} in its name; there are: {names}")
    raise LoadFailedError(f"{path} has several files for quant {quant!r}, name one of them: {names}")
