"""The account of one request: what happened when, and the one record that says so at the end."""

from cortex_proto.generation import (
    Delta,
    Finished,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from cortex_proto.ids import ModelId, NodeId, RequestId
from cortex_proto.telemetry import RequestDone

UNKNOWN_MODEL = ModelId("unknown")
"""Stands for any model that is not in the catalogue: what a client writes must not become a label."""
CANCELLED = "cancelled"


class Account:
    """Kept while a request is served."""

    def __init__(self, request: RequestId, dialect: str, *, stream: bool, arrived_s: float) -> None:
        self.model = UNKNOWN_MODEL
        self.cold_start = False
        self.outcome = CANCELLED
        """Until something else is known, the client is the one who ended it."""
        self._request = request
        self._dialect = dialect
        self._stream = stream
        self._arrived_s = arrived_s
        self._node: NodeId | None = None
        self._num_attempts = 0
        self._sent_s: float | None = None
        self._first_s: float | None = None
        self._last_s: float | None = None
        self._usage = Usage(0, 0)

    @property
    def begun(self) -> bool:
        """Whether the client may have seen a part of the answer, so that it must not begin again."""
        return self._first_s is not None

    @property
    def num_attempts(self) -> int:
        """How often the request was sent to a node."""
        return self._num_attempts

    def send(self, node: NodeId, now_s: float) -> None:
        """Note that the request goes to `node` now."""
        self._node = node
        self._num_attempts += 1
        self._sent_s = now_s

    def take(self, delta: Delta, now_s: float) -> None:
        """Note what came."""
        if isinstance(delta, TextDelta | ReasoningDelta | ToolCallDelta):
            self._first_s = self._first_s or now_s
            self._last_s = now_s
        elif isinstance(delta, Finished):
            self._last_s = now_s
            self._usage = delta.usage
            self.outcome = delta.reason

    def done(self, now_s: float, at: str) -> RequestDone:
        """Write the record; `at` is the present time, RFC 3339."""
        return RequestDone(
            request=self._request,
            model=self.model,
            node=self._node,
            dialect=self._dialect,
            stream=self._stream,
            outcome=self.outcome,
            prompt_tokens=self._usage.prompt_tokens,
            output_tokens=self._usage.output_tokens,
            cached_tokens=self._usage.cached_tokens,
            cold_start=self.cold_start,
            queue_s=(self._sent_s or now_s) - self._arrived_s,
            ttft_s=None if self._first_s is None else self._first_s - self._arrived_s,
            tokens_per_s=self._tokens_per_s(),
            latency_s=now_s - self._arrived_s,
            attempts=self._num_attempts,
            at=at,
        )

    def _tokens_per_s(self) -> float | None:
        """Decode speed: the first token is prefill's, so only those after it count."""
        if self._first_s is None or self._last_s is None or self._usage.output_tokens < 2:
            return None
        decode_s = self._last_s - self._first_s
        return (self._usage.output_tokens - 1) / decode_s if decode_s > 0 else None
