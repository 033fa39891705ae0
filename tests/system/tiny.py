"""Tiny models for whole systems: they load fast and can hold a conversation, if not a sensible one."""

from pathlib import Path
from typing import Any

import httpx

from builders.checkpoints import write_llama
from builders.tokenizers import write_tokenizer
from system.conftest import Cortex


def write_model(folder: Path, seed: int) -> Path:
    """Write a random model with a tokenizer; another `seed` gives other answers."""
    write_llama(folder, seed=seed, vocab_size=512)
    write_tokenizer(folder)
    return folder


def entry(name: str, folder: Path, more: str = "") -> str:
    """Return the `models.toml` entry of a model."""
    return f'[[models]]\nid = "{name}"\nsource = "{folder}"\n{more}\n'


def ask(system: Cortex, model: str, **more: Any) -> httpx.Response:
    """Ask for a few tokens."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, **more}
    return httpx.post(f"{system.url}/v1/chat/completions", json=body, timeout=60)
