"""The streams of this node: what each has sent, who still wants it, and when it is over. Pure.

A stream that has ended stays known for a while, so that a lease can still tell its gateway how
many frames there were, and a lost tail is noticed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cortex_neuron.engine.choosing import Logprobs
from cortex_neuron.engine.messages import Ended
from cortex_proto.errors import Failed
from cortex_proto.generation import (
    LEASE_LIMIT_S,
    Accepted,
    AnswerDelta,
    Finished,
    FinishReason,
    Frame,
    Generate,
    Lease,
    LeaseHeld,
    Logprob,
    ReasoningDelta,
    TextDelta,
    Timing,
    Usage,
)
from cortex_proto.ids import InstanceId, ModelId, NodeId, StreamId
from cortex_proto.stream import Numbering

REMEMBERED_S = 30.0
"""A stream stays known for so long after its last frame."""


class Writing(Protocol):
    """An answer as it is written: `text.answer.Answer`, whose module needs the tokenizers."""

    @property
    def stop(self) -> str | None:
        """The stop string that ended the text."""

    @property
    def num_calls(self) -> int:
        """Tool calls that are whole."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more is wanted."""

    @property
    def reasoning_tokens(self) -> int:
        """Tokens taken in while the model was thinking."""

    def take(self, tokens: Sequence[int]) -> Sequence[AnswerDelta]:
        """Take in tokens; return what is certain to stay."""

    def finish(self) -> Sequence[AnswerDelta]:
        """Return what was held back."""


class Telling(Protocol):
    """The logprobs of an answer: `text.logprobs.Ledger`."""

    def take(self, tokens: Sequence[int], told: Sequence[Logprobs]) -> None:
        """Take in tokens."""

    def close(self) -> None:
        """No more tokens come."""

    def release(self, text: str) -> tuple[Logprob, ...]:
        """Give those of the tokens that end in `text`, which is sent now."""

    def rest(self, *, is_stopped: bool) -> tuple[Logprob, ...]:
        """Give those that are left at the end of the text."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long streams live; parameters, so that tests need not wait."""

    lease_s: float = LEASE_LIMIT_S
    remembered_s: float = REMEMBERED_S


class Stream:
    """One stream: turns what the engine says into numbered frames."""

    def __init__(self, generate: Generate, now_s: float) -> None:
        self.id: StreamId = generate.stream
        self.gateway: InstanceId = generate.gateway
        self.model: ModelId = generate.model
        self.opened_s = now_s
        self.leased_s = now_s
        self.deadline_s = now_s + generate.budget_ms / 1000
        self.ended_s: float | None = None
        self._numbering = Numbering(generate.stream)
        self._answer: Writing | None = None
        self._ledger: Telling | None = None
        self._prepared_s = 0.0
        self._num_output = 0

    @property
    def sent(self) -> int:
        """Frames so far."""
        return self._numbering.sent

    @property
    def is_stopped(self) -> bool:
        """Whether the answer is over before the engine says so, so that the engine may stop too."""
        return self._answer is not None and self._answer.is_over

    def accept(self, node: NodeId) -> Frame:
        """Make the first frame."""
        return self._numbering.frame(Accepted(node))

    def begin(self, answer: Writing, now_s: float, ledger: Telling | None = None) -> None:
        """The prompt has been turned into tokens; `answer` will turn tokens into text.

        `ledger` is for those who want to know how likely the tokens were.
        """
        self._answer = answer
        self._ledger = ledger
        self._prepared_s = now_s - self.opened_s

    def sampled(self, tokens: Sequence[int], told: Sequence[Logprobs] = ()) -> tuple[Frame, ...]:
        """Make frames of the next tokens: none while text is held back, and none once the answer is over."""
        assert self._answer is not None
        if self._answer.is_over:
            return ()
        self._num_output += len(tokens)
        if self._ledger is not None:
            self._ledger.take(tokens, told)
        return self._framed(self._answer.take(tokens))

    def finished(self, ended: Ended) -> tuple[Frame, ...]:
        """Make the last frames: what was held back, and `Finished`."""
        assert self._answer is not None
        was_over = self._answer.is_over
        if self._ledger is not None:
            self._ledger.close()
        frames = self._framed(self._answer.finish(), is_last=True)
        num_output = self._num_output if was_over else ended.output_tokens
        finished = Finished(
            reason=_reason(self._answer, ended),
            usage=Usage(ended.prompt_tokens, num_output, ended.cached_tokens, self._answer.reasoning_tokens),
            timing=Timing(self._prepared_s + ended.queue_s, ended.prefill_s, ended.decode_s),
            digest=self._numbering.digest.text(),
            stop=self._answer.stop,
        )
        return (*frames, self._numbering.frame(finished))

    def failed(self, failed: Failed) -> Frame:
        """Make the last frame of a stream that did not end well."""
        return self._numbering.frame(failed)

    def _framed(self, deltas: Iterable[AnswerDelta], *, is_last: bool = False) -> tuple[Frame, ...]:
        if self._ledger is not None:
            deltas = self._told(self._ledger, deltas, is_last=is_last)
        return tuple(self._numbering.frame(delta) for delta in deltas)

    def _told(
        self, ledger: Telling, deltas: Iterable[AnswerDelta], *, is_last: bool
    ) -> Iterator[AnswerDelta]:
        """Add the logprobs of the tokens that end in each text; those of thoughts are not told."""
        for delta in deltas:
            if isinstance(delta, TextDelta):
                yield TextDelta(delta.text, ledger.release(delta.text))
                continue
            if isinstance(delta, ReasoningDelta):
                ledger.release(delta.text)
            yield delta
        if is_last and (rest := ledger.rest(is_stopped=self.is_stopped)):
            yield TextDelta("", rest)


def _reason(answer: Writing, ended: Ended) -> FinishReason:
    """Say why the answer is over; one cut by the limit is not sold as whole, whatever it calls."""
    if ended.reason == "length" and not answer.is_over:
        return "length"
    return "tool_calls" if answer.num_calls else "stop"


class Streams:
    """All streams of this node, by their id."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._streams: dict[StreamId, Stream] = {}
        self._num_live: dict[ModelId, int] = {}

    @property
    def num_live(self) -> Mapping[ModelId, int]:
        """Streams that have not ended, per model."""
        return self._num_live

    def open(self, generate: Generate, now_s: float) -> Stream | None:
        """Take in a new stream; None if its id is known already, that is, if this is a repetition."""
        if generate.stream in self._streams:
            return None
        stream = Stream(generate, now_s)
        self._streams[stream.id] = stream
        self._num_live[stream.model] = self._num_live.get(stream.model, 0) + 1
        return stream

    def live(self, stream: StreamId) -> Stream | None:
        """Find a stream that has not ended."""
        found = self._streams.get(stream)
        return found if found is not None and found.ended_s is None else None

    def of(self, model: ModelId) -> tuple[Stream, ...]:
        """Return the streams of `model` that have not ended."""
        return self._select(lambda s: s.model == model)

    def end(self, stream: Stream, now_s: float) -> None:
        """A stream has sent its last frame."""
        assert stream.ended_s is None
        stream.ended_s = now_s
        self._num_live[stream.model] -= 1
        if not self._num_live[stream.model]:
            del self._num_live[stream.model]

    def lease(self, lease: Lease, now_s: float) -> LeaseHeld:
        """Renew the streams that a gateway still wants; answer how many frames each has sent."""
        known = [s for i in lease.streams if (s := self._streams.get(i)) and s.gateway == lease.gateway]
        for stream in known:
            stream.leased_s = now_s
        return LeaseHeld({stream.id: stream.sent for stream in known})

    def unwanted(self, now_s: float) -> tuple[Stream, ...]:
        """Return the streams that no lease has named for too long."""
        return self._select(lambda s: now_s - s.leased_s > self._limits.lease_s)

    def overdue(self, now_s: float) -> tuple[Stream, ...]:
        """Return the streams whose time is up."""
        return self._select(lambda s: now_s > s.deadline_s)

    def forget(self, now_s: float) -> None:
        """Forget what ended long ago."""
        oldest_s = now_s - self._limits.remembered_s
        self._streams = {i: s for i, s in self._streams.items() if s.ended_s is None or s.ended_s >= oldest_s}

    def _select(self, holds: Callable[[Stream], bool]) -> tuple[Stream, ...]:
        return tuple(s for s in self._streams.values() if s.ended_s is None and holds(s))
