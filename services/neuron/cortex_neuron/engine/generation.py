"""One request on its way through the engine: its tokens, what it holds, and when what happened. Pure."""

from dataclasses import dataclass, field

from cortex_neuron.engine.cache import Chain
from cortex_neuron.engine.choosing import Constraint, Counts
from cortex_neuron.engine.messages import Ended, EndReason, EngineRequest
from cortex_neuron.engine.plan import Draw
from cortex_neuron.model.spec import PAGE
from cortex_proto.errors import BadRequestError

SNAPSHOT_TOKENS = 2048
"""A long prompt has a snapshot each so many tokens."""


@dataclass(slots=True, eq=False)
class Generation:
    """A request on its way; times are None until they come."""

    request: EngineRequest
    seed: int
    max_output: int
    submitted_s: float
    constraint: Constraint | None = None
    tokens: list[int] = field(init=False)
    """The prompt and everything sampled since."""
    chain: Chain = field(init=False)
    counts: Counts | None = field(init=False)
    """Only for a request with penalties."""
    computed: int = 0
    """So many of `tokens` are in the cache."""
    pages: tuple[int, ...] = ()
    num_published: int = 0
    """So many of `pages` are full, and found by whoever asks for their content."""
    cached_tokens: int = 0
    """So many were in the cache already when it first ran."""
    slot: int = 0
    marks: tuple[int, ...] = ()
    """Where snapshots are due while the prompt is computed, ascending."""
    tail: bytes | None = None
    """The key of the last snapshot taken while decoding."""
    started_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.tokens)
        self.chain = Chain(self.request.salt)
        self.counts = Counts(self.tokens) if self.request.choosing.penalises else None

    @property
    def num_output(self) -> int:
        """Tokens sampled for it so far."""
        return len(self.tokens) - len(self.request.tokens)

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one can be sampled; 1 means decoding."""
        return len(self.tokens) - self.computed

    def end_ids(self, eos_ids: frozenset[int]) -> frozenset[int]:
        """Say which tokens end this answer."""
        request = self.request
        if not request.stop_ids:
            return frozenset() if request.ignore_eos else eos_ids
        return frozenset(request.stop_ids) | (frozenset() if request.ignore_eos else eos_ids)

    def draw(self, eos_ids: frozenset[int]) -> Draw:
        """Say how the next token is chosen; what a grammar allows is not barred as well."""
        index = self.num_output
        is_early = index < self.request.min_tokens and self.constraint is None
        barred = tuple(sorted(self.end_ids(eos_ids))) if is_early else ()
        return Draw(self.request.choosing, self.seed, index, self.counts, barred, self.constraint)

    def ended(self, reason: EndReason, now_s: float) -> Ended:
        """Give the last event; a phase that was not reached took no time."""
        started_s = now_s if self.started_s is None else self.started_s
        first_s = now_s if self.first_s is None else self.first_s
        last_s = first_s if self.last_s is None else self.last_s
        return Ended(
            self.request.id,
            reason,
            prompt_tokens=len(self.request.tokens),
            output_tokens=self.num_output,
            cached_tokens=self.cached_tokens,
            queue_s=started_s - self.submitted_s,
            prefill_s=first_s - started_s,
            decode_s=last_s - first_s,
        )

    @property
    def num_pages(self) -> int:
        """Pages for all its tokens and one more."""
        return len(self.tokens) // PAGE + 1

    def marks_from(self, branch: int) -> tuple[int, ...]:
        """Say where snapshots are due; others have computed the prompt's tokens up to `branch`."""
        last = (len(self.tokens) - 1) // PAGE * PAGE
        marks = {branch, last, *range(SNAPSHOT_TOKENS, last, SNAPSHOT_TOKENS)}
        return tuple(sorted(mark for mark in marks if mark > self.computed))


def check_tokens(request: EngineRequest, vocab_size: int) -> None:
    """Make sure that the model has all tokens that `request` names.

    Raises:
        BadRequestError: it has not, or the prompt is empty.
    """
    if not request.tokens:
        raise BadRequestError("the prompt is empty")
    named = {
        "the prompt": request.tokens,
        "logit_bias": [token for token, _ in request.choosing.logit_bias],
        "stop_token_ids": request.stop_ids,
    }
    for where, tokens in named.items():
        if tokens and not (min(tokens) >= 0 and max(tokens) < vocab_size):
            raise BadRequestError(f"{where}: this model has the tokens 0 to {vocab_size - 1}", where)
