"""Both ends of a token stream: numbering at the neuron, checking at the gateway.

Core NATS may lose messages without a word. So every frame is numbered, the last one carries a
digest of all text, and a lease once in a while says how many frames there should be by now.
A hole is never hidden: it ends the stream with an error.
"""

import hashlib

from cortex_proto.errors import Failed, StreamBrokenError
from cortex_proto.generation import (
    Accepted,
    Delta,
    Finished,
    Frame,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)
from cortex_proto.ids import StreamId


class Digest:
    """A rolling blake2s of what a stream says: text, reasoning and tool-call pieces, in order.

    Each piece goes in as its fields, each with its length in bytes before it (`1:t5:Hello`), so that
    no two different answers are the same bytes. Logprobs are not covered: they are about the text.
    """

    def __init__(self) -> None:
        self._hash = hashlib.blake2s(digest_size=16)

    def add(self, delta: Delta) -> None:
        """Take in one delta; the kinds without text change nothing."""
        match delta:
            case TextDelta(text=text):
                self._take("t", text)
            case ReasoningDelta(text=text):
                self._take("r", text)
            case ToolCallDelta(index=index, arguments=arguments, id=id, name=name):
                self._take("c", str(index), id or "", name or "", arguments)
            case Accepted() | Finished() | Failed():
                pass

    def _take(self, kind: str, *parts: str) -> None:
        for part in (kind, *parts):
            raw = part.encode()
            self._hash.update(b"%d:" % len(raw) + raw)

    def text(self) -> str:
        """Return the digest so far, in hex."""
        return self._hash.hexdigest()


class Numbering:
    """The neuron's end: numbers the deltas of one stream."""

    def __init__(self, stream: StreamId) -> None:
        self.stream = stream
        self.sent = 0
        self.digest = Digest()

    def frame(self, delta: Delta) -> Frame:
        """Wrap the next delta."""
        self.digest.add(delta)
        frame = Frame(self.stream, self.sent, delta)
        self.sent += 1
        return frame


class Checking:
    """The gateway's end: lets the frames of one stream through only in order and whole."""

    def __init__(self) -> None:
        self.received = 0
        self._digest = Digest()

    def take(self, frame: Frame) -> Delta:
        """Return the delta of the next frame.

        Raises:
            StreamBrokenError: the frame is not the next one, or the digest does not match.
        """
        if frame.seq != self.received:
            raise StreamBrokenError(
                f"frame {frame.seq} came where {self.received} was due: part of the answer was lost"
            )
        self.received += 1
        self._digest.add(frame.delta)
        if isinstance(frame.delta, Finished) and frame.delta.digest != self._digest.text():
            raise StreamBrokenError("the answer differs from what the engine produced")
        return frame.delta

    def check(self, sent: int | None) -> None:
        """Compare with how many frames the neuron says it sent; None if it does not know the stream.

        Raises:
            StreamBrokenError: frames are missing.
        """
        if sent is None:
            raise StreamBrokenError("the node no longer knows this stream")
        if sent > self.received:
            raise StreamBrokenError(f"{sent - self.received} frames at the end were lost")
