"""Reads a model's text side: tokenizer, chat template, sampling defaults."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cortex_neuron.text.answer import Answer
from cortex_neuron.text.detokenizer import Detokenizer
from cortex_neuron.text.logprobs import Ledger
from cortex_neuron.text.markup import CALL_BLOCK, Markup, is_thinking, markup_of
from cortex_neuron.text.reasoning import Reasoning
from cortex_neuron.text.template import Template
from cortex_neuron.text.tool_calls import Calling, ToolCalls
from cortex_proto.errors import BadRequestError, LoadFailedError
from cortex_proto.generation import Chat, Generate, Prompt, Sampling, Text
from cortex_proto.ids import StreamId

_ID_BYTES = 12
"""Of the digest of a stream's name that the ids of its tool calls begin with."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """How the model wants to be sampled where the request does not say."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


DEFAULTS = Defaults()


@dataclass(frozen=True, slots=True)
class TextCodec:
    """Turns prompts into tokens, and tokens into answers. May be used from several threads."""

    tokenizer: Tokenizer
    template: Template | None
    defaults: Defaults
    markup: Markup

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

    def answer(self, generate: Generate, prompt: Sequence[int]) -> Answer:
        """Begin to write an answer; `prompt` is the tokens of the request.

        What continues a plain text is all text. Of a chat, thoughts and calls are sorted out, the
        latter only if there are tools to call.
        """
        chat, stops = generate.prompt, generate.limits.stop
        if not isinstance(chat, Chat):
            return Answer(Detokenizer(self.tokenizer, prompt), stops)
        calling = self._calling(chat, generate.stream)
        marks = self.markup.thoughts
        return Answer(
            Detokenizer(self.tokenizer, prompt, self.markup.shown),
            stops,
            reasoning=Reasoning(
                marks,
                is_open=is_thinking(self.tokenizer, prompt, marks),
                opaque=(CALL_BLOCK,) if calling else (),
            ),
            calls=ToolCalls(calling),
            max_calls=None if chat.parallel_tool_calls else 1,
        )

    def _calling(self, chat: Chat, stream: StreamId) -> Calling | None:
        if not chat.tools or self.markup.calls is None:
            return None
        schemas = {tool.name: _object(tool.parameters) for tool in chat.tools}
        digest = hashlib.blake2s(stream.encode(), digest_size=_ID_BYTES).hexdigest()
        return Calling(self.markup.calls, schemas, f"call_{digest}")

    def ledger(self, generate: Generate, prompt: Sequence[int]) -> Ledger:
        """Begin to keep the logprobs of an answer; `prompt` is the tokens of the request."""
        if not isinstance(generate.prompt, Chat):
            return Ledger(self.tokenizer, prompt)
        return Ledger(self.tokenizer, prompt, self.markup.shown)

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
    sources = _template_sources(tokenizer_dir, config)
    special_tokens = tuple(_special_tokens(config))
    defaults = _defaults(_read_json(model / "generation_config.json"))
    return codec(tokenizer, sources, special_tokens, defaults)


def codec(
    tokenizer: Tokenizer,
    templates: Mapping[str, str],
    special_tokens: tuple[tuple[str, str], ...] = (),
    defaults: Defaults = DEFAULTS,
) -> TextCodec:
    """Put a text side together; of several templates, one may be for conversations with tools."""
    source = templates.get("default") or next(iter(templates.values()), None)
    template = Template(source, special_tokens, templates.get("tool_use")) if source else None
    return TextCodec(tokenizer, template, defaults, markup_of(tokenizer, "".join(templates.values())))


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


def _template_sources(directory: Path, config: Mapping[str, Any]) -> Mapping[str, str]:
    """Find the chat templates by name: in a file of its own, else in the tokenizer's configuration."""
    file = directory / "chat_template.jinja"
    if file.exists():
        return {"default": file.read_text()}
    found = _read_json(directory / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(found, list):
        return {entry["name"]: entry["template"] for entry in found if {"name", "template"} <= entry.keys()}
    return {"default": found} if isinstance(found, str) else {}


def _object(text: str) -> Mapping[str, Any]:
    """Read a JSON object; anything else is an empty one."""
    try:
        tree = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _special_tokens(config: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            yield name, text


def _defaults(config: Mapping[str, Any]) -> Defaults:
    known = {name: config[name] for name in Defaults.__slots__ if config.get(name) is not None}
    return Defaults(**known)
