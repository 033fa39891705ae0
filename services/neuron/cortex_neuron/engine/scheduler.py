"""Continuous batching: which requests take part in the next step, and with how many tokens.

Every step computes one token of each decoding request first, then pieces of prompts, the oldest
first, within a budget: an answer that is running never waits for somebody's prompt. A request
enters when there are pages for its tokens and one more. When a decoding request needs a page and
none is free, the youngest gives up its pages and goes back to the front of the queue; what it
had said becomes part of the tokens to compute again.

Requests run in order of arrival: `_running` is always older than `_waiting`. The oldest one
fits into the pages alone, so there is always progress.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cortex_neuron.engine.cache import Pages
from cortex_neuron.engine.choosing import Constraint, Counts, Logprobs
from cortex_neuron.engine.messages import Ended, EndReason, EngineRequest, Event, Refused, Sampled
from cortex_neuron.engine.plan import Draw, Plan, PlanRow
from cortex_neuron.model.spec import PAGE
from cortex_proto.errors import BadRequestError, BusyError, ContextLengthError, EngineError, to_wire
from cortex_proto.generation import Grammar
from cortex_proto.ids import StreamId

Bind = Callable[[Grammar], Constraint]
"""Begins an answer that a grammar binds: `Grammars.bind`."""
_NO_LOGPROBS: Mapping[StreamId, Logprobs] = {}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model and the options allow."""

    context: int
    """No more than the pages hold, so that one request always fits alone."""
    vocab_size: int
    eos_ids: frozenset[int]
    num_pages: int
    max_batch: int
    max_waiting: int
    prefill_tokens: int


@dataclass(slots=True, eq=False)
class _Generation:
    """A request on its way; times are None until they come."""

    request: EngineRequest
    seed: int
    max_output: int
    submitted_s: float
    constraint: Constraint | None = None
    tokens: list[int] = field(init=False)
    """The prompt and everything sampled since."""
    counts: Counts | None = field(init=False)
    """Only for a request with penalties."""
    computed: int = 0
    """So many of `tokens` are in the cache."""
    pages: tuple[int, ...] = ()
    started_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.tokens)
        self.counts = Counts(self.tokens) if self.request.choosing.penalises else None

    @property
    def num_output(self) -> int:
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
            queue_s=started_s - self.submitted_s,
            prefill_s=first_s - started_s,
            decode_s=last_s - first_s,
        )


def _no_grammars(_: Grammar) -> Constraint:
    raise BadRequestError(
        "response_format: this model has no tokenizer file, so nothing can bind its answers"
    )


class Scheduler:
    """Owns the requests of one engine and their pages. Knows neither tensors nor clocks."""

    def __init__(self, limits: Limits, bind: Bind = _no_grammars) -> None:
        assert limits.context <= limits.num_pages * PAGE
        self._limits = limits
        self._bind = bind
        self._pages = Pages(limits.num_pages)
        self._running: list[_Generation] = []
        self._waiting: deque[_Generation] = deque()
        self._by_id: dict[StreamId, _Generation] = {}

    @property
    def num_running(self) -> int:
        """Requests that hold pages."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that hold none."""
        return len(self._waiting)

    @property
    def num_free_pages(self) -> int:
        """Pages that nobody holds."""
        return self._pages.free

    def submit(self, request: EngineRequest, *, seed: int, now_s: float) -> None:
        """Queue `request`; `seed` stands in where it brings none.

        Raises:
            BusyError: too many wait already.
            ContextLengthError: the prompt leaves no room for an answer.
            BadRequestError: an empty prompt, a token that the model does not have, an id in use,
                a grammar that cannot be used.
        """
        limits = self._limits
        if len(self._waiting) >= limits.max_waiting:
            raise BusyError(f"{len(self._waiting)} requests are waiting for this model; try again later")
        num_prompt = len(request.tokens)
        if num_prompt >= limits.context:
            raise ContextLengthError(
                f"This model's maximum context length is {limits.context} tokens. "
                f"However, your messages resulted in {num_prompt} tokens.",
                param="messages",
            )
        _check_tokens(request, limits.vocab_size)
        if request.id in self._by_id:
            raise BadRequestError(f"{request.id} is in use already")
        room = limits.context - num_prompt
        max_output = room if request.max_tokens is None else min(request.max_tokens, room)
        seed = seed if request.seed is None else request.seed
        grammar = request.choosing.grammar
        constraint = None if grammar is None else self._bind(grammar)
        generation = _Generation(request, seed, max_output, now_s, constraint)
        self._by_id[request.id] = generation
        self._waiting.append(generation)

    def cancel(self, stream: StreamId, now_s: float) -> Ended | None:
        """Drop a request wherever it is; None if it is over already."""
        generation = self._by_id.get(stream)
        if generation is None:
            return None
        self._leave(generation)
        return generation.ended("cancelled", now_s)

    def abandon(self, plan: Plan) -> list[StreamId]:
        """Drop every request of a step that failed, and say which they were."""
        dropped = [row.id for row in plan.rows if row.id in self._by_id]
        for stream in dropped:
            self._leave(self._by_id[stream])
        return dropped

    def plan(self, now_s: float) -> Plan:
        """Choose what the next step computes; no rows if there is nothing to do."""
        preempted: list[StreamId] = []
        rows = [self._row(g, 1) for g in self._decoding(preempted)]
        num_decoding = len(rows)
        budget = self._limits.prefill_tokens
        for generation in self._running:
            if budget and generation.pending > 1:
                rows.append(self._row(generation, budget))
                budget -= len(rows[-1].tokens)
        while not (blocked := self._obstacle(budget)) and self._waiting:
            rows.append(self._row(self._admit(now_s), budget))
            budget -= len(rows[-1].tokens)
        return Plan(tuple(rows), num_decoding, tuple(preempted), blocked)

    def commit(
        self,
        plan: Plan,
        sampled: Sequence[int],
        now_s: float,
        logprobs: Mapping[StreamId, Logprobs] = _NO_LOGPROBS,
    ) -> list[Event]:
        """Take in what the step gave: one token for each row of `plan` that draws, in order.

        `logprobs` are those of these tokens, for the requests that asked for them.
        """
        events: list[Event] = []
        draws = iter(sampled)
        for row in plan.rows:
            token = None if row.draw is None else next(draws)
            generation = self._by_id.get(row.id)
            if generation is None:  # cancelled while the step ran
                continue
            generation.computed = row.past + len(row.tokens)
            if token is not None:
                told = (logprobs[row.id],) if row.id in logprobs else ()
                events += self._append(generation, Sampled(row.id, [token], told), now_s)
        return events

    def _decoding(self, preempted: list[StreamId]) -> Iterator[_Generation]:
        """Give those that decode, oldest first, each with a page for its next token.

        Where none is free, the youngest of all that run loses its own.
        """
        running = self._running
        place = 0
        while place < len(running):
            generation = running[place]
            place += 1
            if generation.pending > 1:
                continue
            if generation.computed < len(generation.pages) * PAGE:
                yield generation
                continue
            if not self._pages.free:
                preempted.append(self._preempt().request.id)
            if self._pages.free and generation.pages:
                generation.pages += self._pages.take(1, after=generation.pages[-1])
                yield generation

    def _preempt(self) -> _Generation:
        """Send the youngest back to the front of the queue."""
        youngest = self._running.pop()
        self._pages.give_back(youngest.pages)
        youngest.pages = ()
        youngest.computed = 0
        self._waiting.appendleft(youngest)
        return youngest

    def _obstacle(self, budget: int) -> str:
        """Say what keeps the first of the queue out; empty if nothing does, or nobody waits."""
        if not self._waiting:
            return ""
        if not budget:
            return f"the step has its {self._limits.prefill_tokens} prompt tokens"
        if len(self._running) >= self._limits.max_batch:
            return f"{len(self._running)} run already"
        needed = _num_pages(self._waiting[0])
        if needed > self._pages.free:
            return f"it needs {needed} pages, {self._pages.free} are free"
        return ""

    def _admit(self, now_s: float) -> _Generation:
        generation = self._waiting.popleft()
        generation.pages = self._pages.take(_num_pages(generation))
        if generation.started_s is None:
            generation.started_s = now_s
        self._running.append(generation)
        return generation

    def _append(self, generation: _Generation, sampled: Sampled, now_s: float) -> list[Event]:
        """Add a token, and end the request if it was the last."""
        request, constraint = generation.request, generation.constraint
        [token] = sampled.tokens
        generation.tokens.append(token)
        generation.last_s = now_s
        if generation.first_s is None:
            generation.first_s = now_s
        if token in generation.end_ids(self._limits.eos_ids):
            return [self._end(generation, "stop", now_s)]
        if generation.counts is not None:
            generation.counts.add(token)
        if constraint is not None:
            constraint.advance(token)
            if constraint.fault:
                self._leave(generation)
                fault = EngineError(f"the answer cannot go on in its grammar: {constraint.fault}")
                return [Refused(request.id, to_wire(fault))]
            if constraint.is_over:
                return [sampled, self._end(generation, "stop", now_s)]
        if generation.num_output >= generation.max_output:
            return [sampled, self._end(generation, "length", now_s)]
        return [sampled]

    def _end(self, generation: _Generation, reason: EndReason, now_s: float) -> Ended:
        self._leave(generation)
        return generation.ended(reason, now_s)

    def _row(self, generation: _Generation, budget: int) -> PlanRow:
        """Plan the next tokens of a request, `budget` of them at most; it draws if none is left over."""
        request = generation.request
        tokens = generation.tokens[generation.computed : generation.computed + budget]
        draw = None
        if len(tokens) == generation.pending:
            draw = generation.draw(self._limits.eos_ids)
        return PlanRow(request.id, tokens, generation.computed, generation.pages, draw)

    def _leave(self, generation: _Generation) -> None:
        del self._by_id[generation.request.id]
        if generation.pages:
            self._running.remove(generation)
            self._pages.give_back(generation.pages)
        else:
            self._waiting.remove(generation)


def _check_tokens(request: EngineRequest, vocab_size: int) -> None:
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


def _num_pages(generation: _Generation) -> int:
    """Pages for all its tokens and one more."""
    return len(generation.tokens) // PAGE + 1
