"""What one step computes: some tokens of some requests, and which of them get a next token."""

from collections.abc import Sequence
from dataclasses import dataclass

from cortex_neuron.engine.choosing import Choosing, Constraint, Counts
from cortex_proto.ids import StreamId


@dataclass(frozen=True, slots=True)
class Draw:
    """How to choose the next token of one row, and which one it is of its request's tokens.

    `seed` and `index` alone decide the random number, so a choice depends neither on the
    neighbours in the batch nor on how often the request was interrupted.
    """

    choosing: Choosing
    seed: int
    index: int
    counts: Counts | None = None
    """Only for a request with penalties."""
    barred: tuple[int, ...] = ()
    """These tokens must not come here."""
    constraint: Constraint | None = None

    @property
    def is_adjusted(self) -> bool:
        """Whether anything is done to the logits but to scale them."""
        return bool(self.counts or self.barred or self.constraint or self.choosing.logit_bias)


@dataclass(frozen=True, slots=True)
class PlanRow:
    """Some tokens of one request."""

    id: StreamId
    tokens: Sequence[int]
    past: int
    """Tokens before these whose keys and values are in the cache."""
    pages: tuple[int, ...]
    """In order; they cover at least `past` and `tokens`."""
    draw: Draw | None
    """None: a piece of a prompt whose end is still to come, so there is nothing to choose."""
    slot: int = 0
    """Where its recurrent layers keep their state; 0 if the model has none."""


@dataclass(frozen=True, slots=True)
class Save:
    """A copy of a state, made after the step and found under `key` from then on."""

    slot: int
    snapshot: int
    """The slot that the copy goes to."""
    key: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """One step. Decoding rows come first, then ends of prompts, then pieces that go on later.

    The pieces are the rows that do not draw. Within each kind the oldest comes first.
    """

    rows: tuple[PlanRow, ...]
    num_decoding: int
    preempted: tuple[StreamId, ...] = ()
    """These lost their pages to an older request; youngest first."""
    blocked: str = ""
    """What keeps the first waiting request out; empty if none waits."""
    zeros: tuple[int, ...] = ()
    """State slots to clear before the step."""
    copies: tuple[tuple[int, int], ...] = ()
    """State slots to copy before the step, from and to."""
    saves: tuple[Save, ...] = ()

    @property
    def because(self) -> str:
        """Say what the step does and why; made only when someone asks, not in every step."""
        clauses = []
        if self.num_decoding:
            clauses.append(f"{self.num_decoding} decode")
        if prompts := self.rows[self.num_decoding :]:
            clauses.append(f"{sum(len(row.tokens) for row in prompts)} prompt tokens of {len(prompts)}")
        if self.preempted:
            clauses.append(f"no page was left, so the youngest gave way: {', '.join(self.preempted)}")
        if self.blocked:
            clauses.append(f"the next waits: {self.blocked}")
        return "; ".join(clauses) or "nothing to do"
