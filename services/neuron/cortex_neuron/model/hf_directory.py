"""A Hugging Face model directory: its config, and the names and shapes of its tensors; no torch here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open

from cortex_proto.errors import LoadFailedError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000


class _Entry(msgspec.Struct):
    """Where a tensor lies behind the header; the entry of metadata lies nowhere."""

    data_offsets: tuple[int, int] = (0, 0)


def read_config(path: Path) -> dict[str, Any]:
    """Read config.json, with the end-of-sequence ids that generation_config.json prefers.

    Raises:
        LoadFailedError: there is no config.json, or it is no JSON object.
    """
    config = _read_json(path / "config.json")
    generation = path / "generation_config.json"
    preferred = _read_json(generation).get("eos_token_id") if generation.exists() else None
    return config if preferred is None else config | {"eos_token_id": preferred}


def weight_files(path: Path) -> tuple[Path, ...]:
    """Name the safetensors files that make up the model, in the order to read them.

    Raises:
        LoadFailedError: there are none, or the index names one that is absent.
    """
    if (path / _SINGLE).exists():
        return (path / _SINGLE,)
    if not (path / _INDEX).exists():
        raise LoadFailedError(f"{path} has neither {_SINGLE} nor {_INDEX}")
    names = sorted(set(_read_json(path / _INDEX).get("weight_map", {}).values()))
    absent = [name for name in names if not (path / name).exists()]
    if absent or not names:
        raise LoadFailedError(f"{path / _INDEX} names absent files: {', '.join(absent) or 'none at all'}")
    return tuple(path / name for name in names)


def read_shapes(path: Path) -> Mapping[str, tuple[int, ...]]:
    """Read the shape of every tensor from the headers of the weight files.

    Raises:
        LoadFailedError: a file is damaged, or as `weight_files`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(path):
        try:
            with safe_open(file, framework="numpy") as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.offset_keys()}
        except SafetensorError as error:
            raise LoadFailedError(f"{file}: {error}{_first_beyond_end(file)}") from error
    return shapes


def _first_beyond_end(file: Path) -> str:
    """Name the first tensor that `file` is too short for, if its header can still be read.

    Source: the safetensors format, 8 bytes of length, little-endian, and a header of JSON.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        header = opened.read(min(length, _MAX_HEADER_BYTES))
    num_bytes = file.stat().st_size - _LENGTH_BYTES - length
    try:
        entries = msgspec.json.decode(header, type=dict[str, _Entry])
    except msgspec.DecodeError:
        return ""
    ends = sorted((entry.data_offsets[1], name) for name, entry in entries.items())
    torn = next((name for end, name in ends if end > num_bytes), None)
    return f"; the file ends before the end of {torn}" if torn else ""


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise LoadFailedError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise LoadFailedError(f"{file} is no JSON object")
    return content
