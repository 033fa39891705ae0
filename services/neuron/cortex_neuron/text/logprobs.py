"""Keeps how likely the tokens of one answer were until their text is sent."""

import re
from collections import deque
from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer

from cortex_neuron.engine.choosing import Logprobs
from cortex_neuron.text.detokenizer import Detokenizer
from cortex_proto.generation import Likely, Logprob

_BYTE = re.compile("<0x([0-9A-F]{2})>")
_SPACE = "\u2581"


class Ledger:
    """Knows of each token which bytes of the text are its own, also where it ends inside a character.

    The bytes of a token by itself need not be those it has in a text: a decoder may drop a space,
    or replace what is no UTF-8. So the text decides: if tokens that became text together do not
    have its bytes by themselves, the last of them has all of it.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], shown: Mapping[int, str] | None = None
    ) -> None:
        self._vocabulary = Vocabulary(tokenizer, shown)
        self._detokenizer = Detokenizer(tokenizer, prompt, shown)
        self._undecoded: list[tuple[int, Logprobs]] = []
        self._waiting: deque[Logprob] = deque()
        self._num_said = 0
        """So many bytes of the first that waits have been sent."""

    def take(self, tokens: Sequence[int], told: Sequence[Logprobs]) -> None:
        """Take in the next tokens."""
        for token, logprobs in zip(tokens, told, strict=True):
            self._undecoded.append((token, logprobs))
            if piece := self._detokenizer.take([token]):
                self._settle(piece)

    def close(self) -> None:
        """Settle what is left, once no more tokens come."""
        self._settle(self._detokenizer.finish())

    def release(self, text: str) -> tuple[Logprob, ...]:
        """Give the logprobs of the tokens that end in `text`, which is sent now; none is given twice.

        Text that came before it and was not sent is passed over with its tokens.
        """
        waiting = b"".join(bytes(entry.chosen.bytes) for entry in self._waiting)
        start = waiting.find(text.encode(), self._num_said)
        if start < 0:
            return ()
        end = start + len(text.encode())
        released: list[Logprob] = []
        place = 0
        while self._waiting and (stop := place + len(self._waiting[0].chosen.bytes)) <= end:
            entry = self._waiting.popleft()
            if stop > start or place == start:
                released.append(entry)
            place = stop
        self._num_said = max(0, end - place)
        return tuple(released)

    def rest(self, *, is_stopped: bool) -> tuple[Logprob, ...]:
        """Give those that are left at the end of the text.

        That is the token that a stop string cuts; if there is none, the tokens that gave no text.
        """
        if self._num_said:
            return (_cut(self._waiting[0], self._num_said),)
        return () if is_stopped else tuple(entry for entry in self._waiting if not entry.chosen.bytes)

    def _settle(self, piece: str) -> None:
        """Share out the text that the undecoded tokens became."""
        if not self._undecoded:
            return
        own = [self._vocabulary.raw(token) for token, _ in self._undecoded]
        if b"".join(own) != piece.encode():
            own = [*(b"" for _ in own[1:]), piece.encode()]
        for (token, told), raw in zip(self._undecoded, own, strict=True):
            top = tuple(self._vocabulary.likely(other, logprob) for other, logprob in told.top)
            self._waiting.append(Logprob(self._vocabulary.likely(token, told.chosen, raw), top))
        self._undecoded.clear()


def _cut(entry: Logprob, num_bytes: int) -> Logprob:
    """Leave the chosen token only its first bytes."""
    chosen = entry.chosen
    return Logprob(Likely(chosen.token, chosen.bytes[:num_bytes], chosen.logprob), entry.top)


class Vocabulary:
    """What each token is by itself; special tokens are nothing, but for those that are shown."""

    def __init__(self, tokenizer: Tokenizer, shown: Mapping[int, str] | None = None) -> None:
        self._tokenizer = tokenizer
        self._shown = shown or {}
        self._special = {i for i, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        decoder = tokenizer.decoder
        self._is_byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()

    def raw(self, token: int) -> bytes:
        """Give its bytes; none for a special token, or an id without one."""
        if token in self._shown:
            return self._shown[token].encode()
        text = self._tokenizer.id_to_token(token)
        if text is None or token in self._special:
            return b""
        if self._is_byte_level:
            return b"".join(_BYTES.get(character, character.encode()) for character in text)
        if match := _BYTE.fullmatch(text):
            return bytes([int(match[1], 16)])
        return bytes(text.replace(_SPACE, " ").encode())

    def likely(self, token: int, logprob: float, raw: bytes | None = None) -> Likely:
        """Write a token down, with the bytes `raw` if they are not its own."""
        raw = self.raw(token) if raw is None else raw
        text = raw.decode(errors="replace") or self._tokenizer.id_to_token(token) or ""
        return Likely(text, tuple(raw), logprob)


def _characters() -> dict[str, bytes]:
    """Give the byte that each character of a byte-level vocabulary stands for.

    Source: bytes_to_unicode of GPT-2's encoder.py.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): bytes([byte]) for byte in plain} | {
        chr(256 + place): bytes([byte]) for place, byte in enumerate(others)
    }


_BYTES = _characters()
