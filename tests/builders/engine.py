"""Engine requests, and a language model of ten lines that reads its past from the pages."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cortex_neuron.engine.choosing import Choosing
from cortex_neuron.engine.messages import Ended, EngineRequest, Event, LoadOptions, Sampled
from cortex_neuron.engine.plan import Plan, PlanRow
from cortex_neuron.engine.scheduler import Limits, Scheduler
from cortex_neuron.model.spec import PAGE
from cortex_proto.ids import StreamId

EOS = 7
VOCAB = 101


def request(name: str = "a", tokens: Sequence[int] = (1, 2, 3), **fields: Any) -> EngineRequest:
    """Fields of `Choosing` may stand beside those of the request."""
    choosing = {key: fields.pop(key) for key in Choosing.__struct_fields__ if key in fields}
    return EngineRequest(StreamId(name), list(tokens), choosing=Choosing(**choosing), **fields)


def load_options(path: Path, **fields: Any) -> LoadOptions:
    """One rank on the CPU, with one thread and little room."""
    defaults: dict[str, Any] = {
        "devices": ("cpu",),
        "dtype": "float32",
        "kv_bytes": 4 * 2**20,
        "max_batch": 8,
        "max_waiting": 8,
        "prefill_tokens": 64,
        "threads": 1,
    }
    return LoadOptions(path=path, **(defaults | fields))


def limits(**fields: Any) -> Limits:
    defaults: dict[str, Any] = {
        "context": 256,
        "vocab_size": VOCAB,
        "eos_ids": frozenset({EOS}),
        "num_pages": 64,
        "max_batch": 8,
        "max_waiting": 8,
        "prefill_tokens": 64,
    }
    return Limits(**(defaults | fields))


def next_token(tokens: Sequence[int]) -> int:
    """Depend on every token and its place; never the end of the sequence."""
    token = sum((place + 1) * token for place, token in enumerate(tokens)) % VOCAB
    return token if token != EOS else EOS + 1


class PagedModel:
    """Writes its tokens into pages and predicts only from what it finds there.

    With state slots it also adds its tokens to a state, which must then hold the same.
    """

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}
        self.states: dict[int, list[int]] = {}

    def step(self, plan: Plan) -> list[int]:
        self.states |= {slot: [] for slot in plan.zeros}
        for source, target in plan.copies:
            self.states[target] = list(self.states[source])
        for row in plan.rows:
            for place, token in enumerate(row.tokens, start=row.past):
                self.slots[self._slot(row, place)] = token
            if row.slot:
                self.states[row.slot] += row.tokens
                assert self.states[row.slot] == self._seen(row)
        for save in plan.saves:
            self.states[save.snapshot] = list(self.states[save.slot])
        return [next_token(self._seen(row)) for row in plan.rows if row.draw is not None]

    def _seen(self, row: PlanRow) -> list[int]:
        length = row.past + len(row.tokens)
        return [self.slots[self._slot(row, place)] for place in range(length)]

    def _slot(self, row: PlanRow, place: int) -> int:
        return row.pages[place // PAGE] * PAGE + place % PAGE


class Bench:
    """A scheduler driven by a `PagedModel`; collects what each request was given."""

    def __init__(self, **fields: Any) -> None:
        self.limits = limits(**fields)
        self.scheduler = Scheduler(self.limits)
        self.model = PagedModel()
        self.now_s = 0.0
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.ended: dict[str, list[Ended]] = defaultdict(list)

    def submit(self, submitted: EngineRequest) -> None:
        self.scheduler.submit(submitted, seed=0, now_s=self.now_s)

    def cancel(self, name: str) -> None:
        if ended := self.scheduler.cancel(StreamId(name), self.now_s):
            self.collect([ended])

    def step(self) -> Plan:
        plan = self.scheduler.plan(self.now_s)
        self.now_s += 1.0
        self.collect(self.scheduler.commit(plan, self.model.step(plan), self.now_s))
        return plan

    def run(self) -> list[Plan]:
        """Step until nothing is left; a thousand steps are enough for any test."""
        plans: list[Plan] = []
        for _ in range(1000):
            if not self.scheduler.num_running + self.scheduler.num_waiting:
                return plans
            plans.append(self.step())
        raise AssertionError("the scheduler made no progress")

    def collect(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Sampled():
                    assert event.id not in self.ended
                    self.tokens[event.id] += event.tokens
                case Ended():
                    self.ended[event.id].append(event)


def alone(prompt: Sequence[int], count: int) -> list[int]:
    """What the model says to `prompt` when nobody else is there."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]
