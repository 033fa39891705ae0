"""One answer as it is written: from sampled tokens to the text that may be shown."""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from cortex_neuron.text.detokenizer import Detokenizer
from cortex_neuron.text.stop import StopStrings


class Answer:
    """Detokenises, and ends the text before the first stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Iterable[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._stops = StopStrings(stops)

    @property
    def stop(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._stops.hit

    def take(self, tokens: Sequence[int]) -> str:
        """Take in the next tokens; return the text that is certain to stay."""
        return self._stops.take(self._detokenizer.take(tokens))

    def finish(self) -> str:
        """Return what was held back, once no more tokens come. It may still hold a stop string."""
        return self._stops.take(self._detokenizer.finish()) + self._stops.finish()
