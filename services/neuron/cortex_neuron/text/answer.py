"""One answer as it is written: from sampled tokens to what may be shown, sorted by kind."""

from collections.abc import Iterable, Sequence

from cortex_neuron.text.detokenizer import Detokenizer
from cortex_neuron.text.reasoning import Reasoning
from cortex_neuron.text.stop import StopStrings
from cortex_neuron.text.tool_calls import ToolCalls
from cortex_proto.generation import AnswerDelta, ReasoningDelta, TextDelta, ToolCallDelta


class Answer:
    """Detokenises, sorts out thoughts and tool calls, and ends the text before the first stop string.

    Stop strings are looked for in the text only, not in thoughts or calls.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: Iterable[str] = (),
        *,
        reasoning: Reasoning | None = None,
        calls: ToolCalls | None = None,
        max_calls: int | None = None,
    ) -> None:
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops)
        self._reasoning = reasoning or Reasoning(None)
        self._calls = calls or ToolCalls(None)
        self._max_calls = max_calls
        self.reasoning_tokens = 0
        """Tokens taken in while the model was thinking, the one that ended it included."""

    @property
    def stop(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._stops.hit

    @property
    def num_calls(self) -> int:
        """Tool calls that are whole."""
        return self._calls.num_whole

    @property
    def is_over(self) -> bool:
        """Whether nothing more is wanted: a stop string has come, or the last call that was allowed."""
        return self.stop is not None or self._calls.num_whole == self._max_calls

    def take(self, tokens: Sequence[int]) -> tuple[AnswerDelta, ...]:
        """Take in the next tokens; return what is certain to stay."""
        deltas: list[AnswerDelta] = []
        for token in tokens:
            if self.is_over:
                break
            self.reasoning_tokens += self._reasoning.is_inside
            deltas += self._sort(self._reasoning.take(self._detokenizer.take([token])))
        return tuple(_joined(deltas))

    def finish(self) -> tuple[AnswerDelta, ...]:
        """Return what was held back, once no more tokens come. It may still hold a stop string."""
        if self.is_over:
            return ()
        rest = self._reasoning.take(self._detokenizer.finish()) + self._reasoning.finish()
        deltas = [*self._sort(rest), *self._stopped(self._calls.finish())]
        if text := self._stops.finish():
            deltas.append(TextDelta(text))
        return tuple(_joined(deltas))

    def _sort(self, deltas: Iterable[ReasoningDelta | TextDelta]) -> Iterable[AnswerDelta]:
        """Find the calls in the text."""
        for delta in deltas:
            if isinstance(delta, ReasoningDelta):
                yield delta
            else:
                yield from self._stopped(self._calls.take(delta.text))

    def _stopped(self, deltas: Iterable[TextDelta | ToolCallDelta]) -> Iterable[AnswerDelta]:
        """End everything before a stop string in the text; one cannot span a call."""
        for delta in deltas:
            if self._stops.hit is not None:
                return
            if text := self._stops.take(delta.text) if isinstance(delta, TextDelta) else self._stops.finish():
                yield TextDelta(text)
            if isinstance(delta, ToolCallDelta):
                yield delta


def _joined(deltas: Iterable[AnswerDelta]) -> list[AnswerDelta]:
    """Make one of neighbours that say the same kind of thing."""
    joined: list[AnswerDelta] = []
    for delta in deltas:
        match (joined[-1] if joined else None, delta):
            case (TextDelta(text=before), TextDelta(text=text)):
                joined[-1] = TextDelta(before + text)
            case (ReasoningDelta(text=before), ReasoningDelta(text=text)):
                joined[-1] = ReasoningDelta(before + text)
            case _:
                joined.append(delta)
    return joined
