"""Finds a model's tokenizer.json, converting other formats once per machine.

A GGUF file holds its tokenizer in another form; reading it takes 5 s and transformers, which
loads torch. So a short-lived process does it, and the result is kept in the user's cache.
"""

import asyncio
import hashlib
import os
from asyncio.subprocess import PIPE
from collections.abc import Iterable, Mapping
from pathlib import Path

from cortex_neuron import child
from cortex_proto.errors import LoadFailedError

CONVERT_LIMIT_S = 300.0
_FORMAT = 1
"""Goes up when the converter's result changes, so that old results are not used."""
_TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab*", "merges*", "*.tiktoken", "chat_template*")


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where converted tokenizers are kept."""
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cortex" / "tokenizers"


def place(model: Path, cache: Path) -> Path:
    """Say where the tokenizer is, or will be: the model's own directory, or one in the cache."""
    return model if (model / "tokenizer.json").exists() else cache / _key(model)


async def tokenizer_dir(model: Path, cache: Path) -> Path:
    """Return a directory with tokenizer.json: the model's own, or a converted one from the cache.

    Raises:
        LoadFailedError: the tokenizer could not be converted.
    """
    target = await asyncio.to_thread(place, model, cache)
    if not (target / "tokenizer.json").exists():
        await _convert(model, target)
    return target


def _key(model: Path) -> str:
    """Name the result after all that it depends on: the format, the files, their sizes and ages."""
    digest = hashlib.blake2s(f"{_FORMAT} {model.resolve()}".encode(), digest_size=16)
    for file in [model] if model.is_file() else sorted(_tokenizer_files(model)):
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _tokenizer_files(directory: Path) -> Iterable[Path]:
    return {file for pattern in _TOKENIZER_FILES for file in directory.glob(pattern) if file.is_file()}


async def _convert(model: Path, target: Path) -> None:
    arguments = (str(model), str(target))
    offline = {"HF_HUB_OFFLINE": "1"}
    async with child.running(
        "cortex_neuron.text.convert", *arguments, stderr=PIPE, environment=offline
    ) as process:
        try:
            async with asyncio.timeout(CONVERT_LIMIT_S):
                _, said = await process.communicate()
        except TimeoutError as error:
            raise LoadFailedError(
                f"{model}: converting the tokenizer took over {CONVERT_LIMIT_S:.0f} s"
            ) from error
    if process.returncode != 0:
        reason = (said.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise LoadFailedError(f"{model}: cannot convert the tokenizer: {reason}")
