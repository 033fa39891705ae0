"""Finds out how a model marks its thoughts and its tool calls: its template or vocabulary has the marks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from cortex_neuron.text.reasoning import THOUGHTS, Marks
from cortex_neuron.text.tool_calls import BLOCK_CLOSE, BLOCK_OPEN, FUNCTION_OPEN, PYTHON_TAG, Notation

CALL_BLOCK = Marks(BLOCK_OPEN, BLOCK_CLOSE)
_PROMPT_TAIL = 16
"""Tokens in which a mark that the template opened would stand; a mark may be spelled out."""


@dataclass(frozen=True, slots=True)
class Markup:
    """The marks of one model."""

    thoughts: Marks | None
    calls: Notation | None
    shown: Mapping[int, str]
    """Marks that are special tokens, which are otherwise left out of the text."""


def markup_of(tokenizer: Tokenizer, template: str) -> Markup:
    """Look for the marks in the vocabulary and the source of the chat template."""

    def has(mark: str) -> bool:
        return mark in template or tokenizer.token_to_id(mark) is not None

    thoughts = next((marks for marks in THOUGHTS if has(marks.open) or has(marks.close)), None)
    calls: Notation | None = None
    if has(BLOCK_OPEN) or FUNCTION_OPEN in template:
        calls = "blocks"
    elif has(PYTHON_TAG) or '"parameters"' in template:
        calls = "bare"
    marks = {*((thoughts.open, thoughts.close) if thoughts else ()), BLOCK_OPEN, BLOCK_CLOSE, PYTHON_TAG}
    added = tokenizer.get_added_tokens_decoder().items()
    shown = {number: token.content for number, token in added if token.special and token.content in marks}
    return Markup(thoughts, calls, shown)


def is_thinking(tokenizer: Tokenizer, prompt: Sequence[int], marks: Marks | None) -> bool:
    """Whether the prompt ends with an open block of thoughts, so that the answer begins inside it."""
    if marks is None:
        return False
    tail: str = tokenizer.decode(prompt[-_PROMPT_TAIL:], skip_special_tokens=False)
    return tail.rstrip().endswith(marks.open)
