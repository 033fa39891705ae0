"""What the neuron and rank 0 of a cluster say to each other over their socket pair.

Each message is MessagePack behind its length in 4 bytes, big-endian. Neuron -> rank:
`EngineRequest`, `CancelRequest`; the end of the socket means "leave". Rank -> neuron: `Loading`
any number of times, then `LoadRefused`, or `Ready` and from then on one `StepEvents` a step;
`Broken` is the last word of a rank that cannot go on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from cortex_neuron.engine.choosing import Choosing, Logprobs
from cortex_neuron.engine.plan import Plan
from cortex_proto.errors import Failed
from cortex_proto.ids import StreamId
from cortex_proto.wire import Message

EndReason = Literal["stop", "length", "cancelled"]
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
_HEAD_BYTES = 4


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What one cluster loads, and how much it may take."""

    path: Path
    """A Hugging Face directory or a .gguf file."""
    devices: tuple[str, ...]
    """One for each rank: "cpu", "cuda:0"."""
    dtype: str
    """"float32", "bfloat16", "float16"."""
    kv_bytes: int
    """Memory of each rank for keys and values; with less than the context needs, the context shrinks."""
    max_batch: int
    max_waiting: int
    prefill_tokens: int
    """Prompt tokens computed in one step at most."""
    threads: int
    """Of each rank on the CPU."""
    tokenizer: Path | None = None
    """Its tokenizer.json, which need not be there before a grammar comes; None: no grammars."""

    @property
    def world(self) -> int:
        """How many ranks share the model."""
        return len(self.devices)


class EngineRequest(Message, frozen=True):
    """Continue `tokens`. All fields are settled: no default of the model is looked up any more."""

    id: StreamId
    tokens: list[int]
    max_tokens: int | None = None
    """None, or more than the context leaves: as many as it leaves."""
    choosing: Choosing = Choosing()
    seed: int | None = None
    """None: another one each time."""
    ignore_eos: bool = False
    salt: str = ""
    """Only requests of one salt read each other's part of the cache."""
    min_tokens: int = 0
    """Nothing ends the answer before it has so many but `max_tokens` or its grammar."""
    stop_ids: tuple[int, ...] = ()
    """These tokens end the answer too."""


class CancelRequest(Message, frozen=True):
    """Stop working on `id`. It takes effect before the next step."""

    id: StreamId


class Sampled(Message, frozen=True):
    """The next tokens of a request; never a token that ends it."""

    id: StreamId
    tokens: list[int]
    logprobs: tuple[Logprobs, ...] = ()
    """Of each token, if asked for."""


class Ended(Message, frozen=True):
    """The request is over; its last event.

    `output_tokens` counts every token sampled for it, as vLLM and OpenAI do: the end-of-sequence
    token that ends an answer is counted though it is not in any `Sampled`.
    """

    id: StreamId
    reason: EndReason
    prompt_tokens: int
    output_tokens: int
    queue_s: float
    """From submission to the first step that works on it."""
    prefill_s: float
    """From there to the first token."""
    decode_s: float
    """From the first token to the last."""
    cached_tokens: int = 0
    """So many of the prompt's tokens were in the cache when it first ran."""


class Refused(Message, frozen=True):
    """The request was not taken, or failed on the way; its last event."""

    id: StreamId
    error: Failed


Event = Sampled | Ended | Refused


class StepEvents(Message, frozen=True):
    """What one step gave, and how full the engine is after it. Sent for every step, also an empty one."""

    events: list[Event]
    running: int
    waiting: int
    free_pages: int
    """Pages that nobody holds; what they hold may still be known, and is then read instead of computed."""
    pages: int


class Loading(Message, frozen=True):
    """How far the load is: `fraction` of `stage`, 0 to 1."""

    stage: str
    fraction: float


class Ready(Message, frozen=True):
    """The model is loaded. `context` is what the model and the pages allow together."""

    context: int
    vocab_size: int
    pages: int


class LoadRefused(Message, frozen=True):
    """The model was not loaded; the last message of the rank."""

    error: Failed


class Broken(Message, frozen=True):
    """The rank cannot go on; its last message."""

    reason: str


ToRank = EngineRequest | CancelRequest
FromRank = StepEvents | Loading | Ready | LoadRefused | Broken

_encoder = msgspec.msgpack.Encoder()
to_rank: msgspec.msgpack.Decoder[ToRank] = msgspec.msgpack.Decoder(ToRank)
from_rank: msgspec.msgpack.Decoder[FromRank] = msgspec.msgpack.Decoder(FromRank)


def frame(message: ToRank | FromRank | Plan) -> bytes:
    """Encode `message` behind its length."""
    payload = _encoder.encode(message)
    return len(payload).to_bytes(_HEAD_BYTES, "big") + payload


class Unframer:
    """Cuts a byte stream back into the messages it was made of."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Give the messages that `chunk` completes, in order.

        Raises:
            ValueError: a length is absurd, so the stream is out of step.
        """
        buffer = self._buffer
        buffer += chunk
        messages = []
        start = 0
        while len(buffer) >= (body := start + _HEAD_BYTES):
            length = int.from_bytes(buffer[start:body], "big")
            if length > MAX_MESSAGE_BYTES:
                raise ValueError(f"a message of {length} bytes is over the limit of {MAX_MESSAGE_BYTES}")
            if len(buffer) < body + length:
                break
            start = body + length
            messages.append(bytes(buffer[body:start]))
        del buffer[:start]
        return messages


def write_options(options: LoadOptions) -> str:
    """Write `options` as one argument of a command line."""
    return msgspec.json.encode(options, enc_hook=str).decode()


def read_options(text: str) -> LoadOptions:
    """Read back what `write_options` wrote."""
    return msgspec.json.decode(text, type=LoadOptions, dec_hook=_path)


def _path(kind: type[Any], value: Any) -> Any:
    return kind(value)
