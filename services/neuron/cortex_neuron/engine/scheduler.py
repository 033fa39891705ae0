"""Continuous batching: which requests take part in the next step, and with how many tokens.

Every step computes one token of each decoding request first, then pieces of prompts, the oldest
first, within a budget: an answer that is running never waits for somebody's prompt. A request
enters when there are pages for its tokens and one more; of these it shares what others have
computed for the same beginning. When a decoding request needs a page and none is free, the
youngest gives up its pages and goes back to the front of the queue; what it had said becomes part
of the tokens to compute again, but for the pages that are still cached then.

A model with recurrent layers can go on only from where a snapshot of their state was taken. So a
request also owns a state slot, shares no more pages than up to the deepest snapshot, and computes
its prompt in pieces that end where snapshots are due: at the last page boundary of the prompt, where
it leaves what others have computed, and now and then in a long one. While it decodes, its last
page boundary has a snapshot, for the next turn and for its return if it must give way.

Requests run in order of arrival: `_running` is always older than `_waiting`. The oldest one
fits into the pages alone, so there is always progress.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cortex_neuron.engine.cache import Pages
from cortex_neuron.engine.choosing import Constraint, Logprobs
from cortex_neuron.engine.generation import Generation, check_tokens
from cortex_neuron.engine.messages import Ended, EndReason, EngineRequest, Event, Refused, Sampled
from cortex_neuron.engine.plan import Plan, PlanRow
from cortex_neuron.engine.states import States
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
    """At least a page, if there are states: pieces of prompts end at page boundaries then."""
    num_slots: int = 0
    """States of recurrent layers; 0 if the model has none."""
    num_snapshots: int = 0
    """States that can be kept beside those."""


def _no_grammars(_: Grammar) -> Constraint:
    raise BadRequestError(
        "response_format: this model has no tokenizer file, so nothing can bind its answers"
    )


class Scheduler:
    """Owns the requests of one engine and their pages. Knows neither tensors nor clocks."""

    def __init__(self, limits: Limits, bind: Bind = _no_grammars) -> None:
        assert limits.context <= limits.num_pages * PAGE
        assert not limits.num_slots or limits.prefill_tokens >= PAGE
        self._limits = limits
        self._bind = bind
        self._pages = Pages(limits.num_pages)
        self._states = States(limits.num_slots, limits.num_snapshots) if limits.num_slots else None
        self._grain = PAGE if limits.num_slots else 1
        self._running: list[Generation] = []
        self._waiting: deque[Generation] = deque()
        self._by_id: dict[StreamId, Generation] = {}

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
        """Pages that nobody holds, whether their content is still known or not."""
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
        check_tokens(request, limits.vocab_size)
        if request.id in self._by_id:
            raise BadRequestError(f"{request.id} is in use already")
        room = limits.context - num_prompt
        max_output = room if request.max_tokens is None else min(request.max_tokens, room)
        seed = seed if request.seed is None else request.seed
        grammar = request.choosing.grammar
        constraint = None if grammar is None else self._bind(grammar)
        generation = Generation(request, seed, max_output, now_s, constraint)
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
        if self._states is not None:
            self._states.lost(plan.saves)
        return dropped

    def plan(self, now_s: float) -> Plan:
        """Choose what the next step computes; no rows if there is nothing to do."""
        preempted: list[StreamId] = []
        rows = [self._advance(g, 1) for g in self._decoding(preempted)]
        num_decoding = len(rows)
        budget = self._limits.prefill_tokens
        for generation in self._running:
            if budget >= self._grain and generation.pending > 1:
                rows.append(self._piece(generation, budget))
                budget -= len(rows[-1].tokens)
        while not (blocked := self._obstacle(budget)) and self._waiting:
            rows.append(self._piece(self._admit(now_s), budget))
            budget -= len(rows[-1].tokens)
        if self._states is None:
            return Plan(tuple(rows), num_decoding, tuple(preempted), blocked)
        rows.sort(key=lambda row: row.draw is None)
        return Plan(tuple(rows), num_decoding, tuple(preempted), blocked, *self._states.due())

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
            if generation.computed >= (generation.num_published + 1) * PAGE:
                self._publish(generation)
            if token is not None:
                told = (logprobs[row.id],) if row.id in logprobs else ()
                events += self._append(generation, Sampled(row.id, [token], told), now_s)
        if self._states is not None:
            self._states.saved(plan.saves)
        return events

    def _piece(self, generation: Generation, budget: int) -> PlanRow:
        """Plan the next tokens of a prompt: as many as the budget allows, up to the next mark."""
        past, length = generation.computed, len(generation.tokens)
        stop = min(past + budget, length, *(mark for mark in generation.marks if mark > past))
        if stop < length:
            stop -= stop % self._grain
        return self._advance(generation, stop - past)

    def _advance(self, generation: Generation, count: int) -> PlanRow:
        """Plan the next `count` tokens of a request, and the snapshot that is due after them."""
        end = generation.computed + count
        if self._states is not None and not end % PAGE:
            key = generation.chain.keys(generation.tokens, end // PAGE)[-1]
            if end in generation.marks:
                self._states.save(generation.slot, key)
            elif end == len(generation.tokens):
                self._states.save(generation.slot, key, instead=generation.tail)
                generation.tail = key
        return self._row(generation, count)

    def _decoding(self, preempted: list[StreamId]) -> Iterator[Generation]:
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

    def _preempt(self) -> Generation:
        """Send the youngest back to the front of the queue."""
        youngest = self._running.pop()
        self._let_go(youngest)
        self._waiting.appendleft(youngest)
        return youngest

    def _obstacle(self, budget: int) -> str:
        """Say what keeps the first of the queue out; empty if nothing does, or nobody waits."""
        if not self._waiting:
            return ""
        if budget < self._grain:
            return f"the step has its {self._limits.prefill_tokens} prompt tokens"
        if len(self._running) >= self._limits.max_batch:
            return f"{len(self._running)} run already"
        if self._states is not None and not self._states.num_free:
            return "no state slot is free"
        found, _ = self._find(self._waiting[0])
        needed, room = self._waiting[0].num_pages - len(found), self._pages.room(found)
        if needed > room:
            return f"it needs {needed} pages, {room} are free"
        return ""

    def _find(self, generation: Generation) -> tuple[tuple[int, ...], int]:
        """Find the pages that need not be computed, and count those that would not but for the state.

        At least one token is left to compute.
        """
        tokens = generation.tokens
        keys = generation.chain.keys(tokens, (len(tokens) - 1) // PAGE)
        found = self._pages.find(keys)
        if self._states is None:
            return found, len(found)
        return found[: self._states.deepest(keys[: len(found)])], len(found)

    def _admit(self, now_s: float) -> Generation:
        generation = self._waiting.popleft()
        found, num_known = self._find(generation)
        self._pages.hold(found)
        needed = generation.num_pages - len(found)
        generation.pages = found + self._pages.take(needed, after=found[-1] if found else None)
        generation.num_published = len(found)
        generation.computed = len(found) * PAGE
        if self._states is not None:
            keys = generation.chain.keys(generation.tokens, len(found))
            generation.slot = self._states.enter(keys[-1] if keys else None)
            generation.marks = generation.marks_from(num_known * PAGE) if self._states.num_snapshots else ()
        if generation.started_s is None:
            generation.started_s = now_s
            generation.cached_tokens = generation.computed
        self._running.append(generation)
        return generation

    def _publish(self, generation: Generation) -> None:
        """Let others find the pages that have become full."""
        num_full = generation.computed // PAGE
        keys = generation.chain.keys(generation.tokens, num_full)
        for place in range(generation.num_published, num_full):
            self._pages.publish(generation.pages[place], keys[place])
        generation.num_published = num_full

    def _append(self, generation: Generation, sampled: Sampled, now_s: float) -> list[Event]:
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

    def _end(self, generation: Generation, reason: EndReason, now_s: float) -> Ended:
        self._leave(generation)
        return generation.ended(reason, now_s)

    def _row(self, generation: Generation, budget: int) -> PlanRow:
        """Plan the next tokens of a request, `budget` of them at most; it draws if none is left over."""
        request = generation.request
        tokens = generation.tokens[generation.computed : generation.computed + budget]
        draw = None
        if len(tokens) == generation.pending:
            draw = generation.draw(self._limits.eos_ids)
        return PlanRow(request.id, tokens, generation.computed, generation.pages, draw, generation.slot)

    def _leave(self, generation: Generation) -> None:
        del self._by_id[generation.request.id]
        if generation.pages:
            self._running.remove(generation)
            self._let_go(generation)
        else:
            self._waiting.remove(generation)

    def _let_go(self, generation: Generation) -> None:
        """Take back what it holds; what was published may be found again."""
        self._pages.give_back(generation.pages)
        generation.pages = ()
        if self._states is not None:
            self._states.leave(generation.slot)
