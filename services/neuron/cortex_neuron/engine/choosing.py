"""How the tokens of one request are chosen: what was asked, and what has to be kept for it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cortex_proto.generation import Grammar
from cortex_proto.wire import Message


class Choosing(Message, frozen=True):
    """What was asked; all is settled, no default of the model is looked up any more.

    Applied in the order of the fields from `grammar` on.
    """

    logprobs: int | None = None
    """Tell how likely each token was, and so many of the likeliest beside it; None: do not."""
    grammar: Grammar | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, each once, and what is added to their logits."""
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    """0 keeps all."""

    @property
    def penalises(self) -> bool:
        """Whether the tokens so far matter."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


class Constraint(Protocol):
    """A grammar and how far an answer has come in it: `grammar.Matcher`, whose module needs llguidance."""

    @property
    def is_over(self) -> bool:
        """Whether the answer can only end now."""

    @property
    def fault(self) -> str:
        """Why the answer cannot go on; empty if it can."""

    def allowed(self) -> bytes:
        """Give one bit a token, the lowest of each byte first: 1 if it may come next."""

    def advance(self, token: int) -> None:
        """Take in the token that came."""


class Counts:
    """Which tokens a request has, and how often its answer has each; grows by one token at a time."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.in_output: dict[int, int] = dict.fromkeys(prompt, 0)
        """All tokens of prompt and answer; those that only the prompt has come 0 times."""

    def add(self, token: int) -> None:
        """Count a token of the answer."""
        self.in_output[token] = self.in_output.get(token, 0) + 1


@dataclass(frozen=True, slots=True)
class Logprobs:
    """The natural logarithms of the probabilities of one place, before any setting of the request."""

    chosen: float
    top: tuple[tuple[int, float], ...]
    """Token ids and theirs, the likeliest first."""
