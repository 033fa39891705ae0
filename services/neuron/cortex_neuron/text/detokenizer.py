"""Turns the tokens of one answer into text as they come, whole characters only."""

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

PROMPT_TAIL = 8
"""Tokens of the prompt that the decoder sees, so that the first piece gets its space right."""
_INCOMPLETE = "\ufffd"


class Detokenizer:
    """Decodes one answer; special tokens give no text, but for those that are `shown`.

    A character may span several tokens; nothing of it is returned before it is whole.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], shown: Mapping[int, str] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._shown = shown or {}
        self._stream = DecodeStream(ids=_tail(tokenizer, prompt), skip_special_tokens=True)
        self._pending: list[int] = []

    def take(self, tokens: Sequence[int]) -> str:
        """Take in the next tokens; return the text that they complete."""
        return "".join(self._step(token) for token in tokens)

    def _step(self, token: int) -> str:
        if token in self._shown:
            return self.finish() + self._shown[token]
        self._pending.append(token)
        piece: str | None = self._stream.step(self._tokenizer, token)
        if piece is None:
            return ""
        self._pending.clear()
        return piece

    def finish(self) -> str:
        """Return the text of the tokens not yet told, without the character that was cut off."""
        text: str = self._tokenizer.decode(self._pending, skip_special_tokens=True)
        self._pending.clear()
        return text.rstrip(_INCOMPLETE)


def _tail(tokenizer: Tokenizer, prompt: Sequence[int]) -> list[int]:
    """Choose the end of the prompt to start from: none if it ends inside a character."""
    tail = list(prompt[-PROMPT_TAIL:])
    return [] if tokenizer.decode(tail, skip_special_tokens=True).endswith(_INCOMPLETE) else tail
