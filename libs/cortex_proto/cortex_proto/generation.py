"""A request for text and the deltas that answer it.

Gateway -> neuron: `Generate`. Neuron -> gateway: a stream of frames, numbered from 0 without
holes: `Accepted`, then text, reasoning and tool-call pieces, and last `Finished` or `Failed`.
One message carries the frames of all streams of one gateway that an engine step produced.
"""

from typing import Literal

import msgspec

from cortex_proto.errors import Failed
from cortex_proto.ids import InstanceId, ModelId, NodeId, RequestId, StreamId
from cortex_proto.wire import Message

FinishReason = Literal["stop", "length", "tool_calls"]
Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(Message, frozen=True):
    """A call the assistant made in an earlier turn; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class ChatTurn(Message, frozen=True):
    """One message of a conversation, text only."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str = ""
    """What the assistant thought before it answered; whether it is shown to it again the template decides."""


class Tool(Message, frozen=True):
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: str = ""
    """A JSON schema, as JSON text; empty: it has none."""


class Chat(Message, frozen=True):
    """A prompt that the model's chat template has yet to render; it ends with the assistant's turn."""

    turns: tuple[ChatTurn, ...]
    tools: tuple[Tool, ...] = ()
    """Those that may be called; with none, what looks like a call is text."""
    parallel_tool_calls: bool = True
    """If not, the answer ends with its first call."""
    template_options: str = ""
    """More variables for the template, such as `enable_thinking`: a JSON object, as JSON text."""


class Text(Message, frozen=True):
    """A prompt to be continued as it stands."""

    text: str


Prompt = Chat | Text


class JsonSchema(Message, frozen=True):
    """The answer is to be JSON that this schema, itself JSON text, allows."""

    schema: str


class Regex(Message, frozen=True):
    """The answer as a whole is to match this pattern, in the syntax of Rust's regex crate."""

    pattern: str


Grammar = JsonSchema | Regex


class Sampling(Message, frozen=True):
    """How to choose the next token. `None` leaves the choice to the model's own defaults."""

    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    top_k: int | None = None
    """0 keeps all."""
    seed: int | None = None
    min_p: float | None = None
    """Tokens less likely than this share of the likeliest are left out; 0 keeps all."""
    repetition_penalty: float | None = None
    """Logits of tokens in prompt or answer are divided by it if positive, else multiplied; 1 is none."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token that is in the answer."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token for each time that it is in the answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, each once, and what is added to their logits."""
    logprobs: int | None = None
    """Tell how likely each token was, and so many of the likeliest beside it; None: do not."""
    grammar: Grammar | None = None


class Limits(Message, frozen=True):
    """When to stop."""

    max_tokens: int | None = None
    """None: as many as the context leaves."""
    stop: tuple[str, ...] = ()
    """The text ends before the first match, also of one that spans tokens."""
    ignore_eos: bool = False
    """Go on past the end-of-sequence token; for benchmarks."""
    min_tokens: int = 0
    """No end-of-sequence token and none of `stop_token_ids` comes before so many; a grammar goes first."""
    stop_token_ids: tuple[int, ...] = ()
    """These tokens end the answer too, and are no part of it."""


class Generate(Message, frozen=True):
    """Produce text. Sent with the reply subject `cortex.tok.<gateway>.0.<stream>`."""

    request: RequestId
    stream: StreamId
    gateway: InstanceId
    model: ModelId
    prompt: Prompt
    sampling: Sampling = Sampling()
    limits: Limits = Limits()
    budget_ms: int = 600_000
    """What is left of the request's time when this is sent; relative, so clocks need not agree."""


class Accepted(Message, frozen=True):
    """The node will serve this stream; its first delta."""

    node: NodeId


class Likely(msgspec.Struct, frozen=True, array_like=True):
    """A token and the natural logarithm of its probability, before any setting of the request."""

    token: str
    bytes: tuple[int, ...]
    """Its UTF-8, which may begin or end inside a character; empty for a special token."""
    logprob: float


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """How likely a token of the answer was, and what was likely in its place; an array, as `Frame` is."""

    chosen: Likely
    top: tuple[Likely, ...] = ()
    """The likeliest first; the chosen one may be among them."""


class TextDelta(Message, frozen=True):
    """The next piece of the answer; empty only if it brings `logprobs` of tokens without text."""

    text: str
    logprobs: tuple[Logprob, ...] = ()
    """Of the tokens whose text ends in this piece, if asked for; their bytes join to the whole text."""


class ReasoningDelta(Message, frozen=True):
    """The next piece of what the model thinks before it answers, never empty."""

    text: str


class ToolCallDelta(Message, frozen=True):
    """A piece of a tool call; `id` and `name` come with the first piece of each `index`."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


class Usage(Message, frozen=True):
    """Tokens, counted at the sampler."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    """Prompt tokens that were not computed again; part of `prompt_tokens`."""
    reasoning_tokens: int = 0
    """Part of `output_tokens`."""


class Timing(Message, frozen=True):
    """Where the time went on the node, in seconds."""

    queue_s: float
    prefill_s: float
    decode_s: float


class Finished(Message, frozen=True):
    """The last delta of a stream that went well.

    `digest` is `stream.Digest` over all text of the stream: the gateway compares it with what it
    received before it tells the client that the answer is whole.
    """

    reason: FinishReason
    usage: Usage
    timing: Timing
    digest: str
    stop: str | None = None
    """The stop string that ended the text, if one did."""


AnswerDelta = TextDelta | ReasoningDelta | ToolCallDelta
Delta = Accepted | AnswerDelta | Finished | Failed


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """One numbered delta of one stream; an array on the wire, because there are many."""

    stream: StreamId
    seq: int
    delta: Delta


class Step(Message, frozen=True):
    """Neuron -> gateway: what one engine step gave to the streams of this gateway."""

    frames: tuple[Frame, ...]


class Lease(Message, frozen=True):
    """Gateway -> neuron, each `LEASE_PERIOD_S`: these streams of mine are still wanted.

    A stream that no lease names for `LEASE_LIMIT_S` is cancelled: its gateway is gone.
    """

    gateway: InstanceId
    streams: tuple[StreamId, ...]


class LeaseHeld(Message, frozen=True):
    """Neuron -> gateway: the answer, behind all frames sent before it.

    `sent[stream]` frames have been sent so far; so a gateway that has received fewer knows that
    frames were lost. A stream that is not named is unknown here.
    """

    sent: dict[StreamId, int]


class Cancel(Message, frozen=True):
    """Gateway -> neuron: stop working on this stream; nothing more is wanted of it."""

    stream: StreamId


TokenMessage = Step | LeaseHeld
"""What travels on `cortex.tok.<gateway>.<node>.*`."""
ControlMessage = Lease | Cancel
"""What travels on `cortex.ctl.<node>.*`."""

ACCEPT_LIMIT_S = 1.0
"""A node that has not accepted a request by then is passed over."""
LEASE_PERIOD_S = 0.5
LEASE_LIMIT_S = 15.0
NODE_SILENCE_LIMIT_S = 2.0
"""A node that answers no lease for so long is lost to the gateway."""
