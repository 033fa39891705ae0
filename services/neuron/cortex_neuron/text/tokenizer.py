"""Reads a model's text side: tokenizer, chat template, sampling defaults."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cortex_neuron.text.answer import Answer
from cortex_neuron.text.logprobs import Ledger
from cortex_neuron.text.template import Template
from cortex_proto.errors import BadRequestError, LoadFailedError
from cortex_proto.generation import Chat, Prompt, Sampling, Text


@dataclass(frozen=True, slots=True)
class Defaults:
    """How the model wants to be sampled where the request does not say."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class TextCodec:
    """Turns prompts into tokens, and tokens into answers. May be used from several threads."""

    tokenizer: Tokenizer
    template: Template | None
    defaults: Defaults

    def encode(self, prompt: Prompt) -> list[int]:
        """Turn a prompt into tokens; a chat through the template, which writes its own special tokens.

        Raises:
            BadRequestError: the model has no chat template, or it refuses the conversation.
        """
        match prompt:
            case Chat():
                text = self._render(prompt)
            case Text(text=text):
                pass
        is_plain = isinstance(prompt, Text)
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=is_plain).ids
        return tokens

    def answer(self, prompt: Sequence[int], stops: Iterable[str]) -> Answer:
        """Begin to write an answer to the tokens `prompt`."""
        return Answer(self.tokenizer, prompt, stops)

    def ledger(self, prompt: Sequence[int]) -> Ledger:
        """Begin to keep the logprobs of an answer to the tokens `prompt`."""
        return Ledger(self.tokenizer, prompt)

    def sampling(self, asked: Sampling) -> Defaults:
        """Fill in what the request leaves open."""
        said = {name: getattr(asked, name) for name in Defaults.__slots__}
        return replace(self.defaults, **{name: value for name, value in said.items() if value is not None})

    def _render(self, chat: Chat) -> str:
        if self.template is None:
            raise BadRequestError("this model has no chat template; ask for a plain completion", "messages")
        return self.template.render(chat)


def load(tokenizer_dir: Path, model: Path) -> TextCodec:
    """Read the text side; takes a good part of a second, so call it in a thread.

    `tokenizer_dir` has tokenizer.json; `model` may have generation_config.json.

    Raises:
        LoadFailedError: a file is missing or cannot be read.
    """
    tokenizer = _tokenizer(tokenizer_dir / "tokenizer.json")
    config = _read_json(tokenizer_dir / "tokenizer_config.json")
    source = _template_source(tokenizer_dir, config)
    template = Template(source, tuple(_special_tokens(config))) if source else None
    return TextCodec(tokenizer, template, _defaults(_read_json(model / "generation_config.json")))


def _tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except (OSError, ValueError) as error:
        raise LoadFailedError(f"{path}: cannot read the tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_json(path: Path) -> Mapping[str, Any]:
    """Read a JSON object; an absent file is an empty one."""
    try:
        tree = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise LoadFailedError(f"{path}: {error}") from error
    return tree if isinstance(tree, dict) else {}


def _template_source(directory: Path, config: Mapping[str, Any]) -> str | None:
    """Find the chat template: in a file of its own, else in the tokenizer's configuration."""
    file = directory / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    found = _read_json(directory / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found}
        found = named.get("default") or next(iter(named.values()), None)
    return found if isinstance(found, str) else None


def _special_tokens(config: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            yield name, text


def _defaults(config: Mapping[str, Any]) -> Defaults:
    known = {name: config[name] for name in Defaults.__slots__ if config.get(name) is not None}
    return Defaults(**known)
