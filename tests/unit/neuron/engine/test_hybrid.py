"""A model with recurrent layers under the scheduler: company, pauses and leaving change no answer."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from builders.checkpoints import write_qwen3_5
from builders.engine import limits, request
from builders.models import load_quietly, pool, random_tokens
from cortex_neuron.engine.messages import Ended, LoadOptions, Sampled
from cortex_neuron.engine.rank import _limits
from cortex_neuron.engine.runner import Runner
from cortex_neuron.engine.scheduler import Scheduler
from cortex_neuron.model.batch import Batch
from cortex_neuron.model.causal import CausalModel
from cortex_neuron.model.group import SOLO
from cortex_neuron.model.kv import KvPool
from cortex_neuron.model.spec import PAGE
from cortex_proto.ids import StreamId

COUNT = 30
PROMPTS = {str(num): random_tokens(num, seed=num) for num in (1, 5, 40, 64, 70, 100)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    torch.set_num_threads(1)
    return load_quietly(write_qwen3_5(tmp_path_factory.mktemp("qwen3_5")))


class Loop:
    """Scheduler and runner, step after step."""

    def __init__(self, model: CausalModel, num_pages: int, num_snapshots: int = 4) -> None:
        kv = KvPool(model.spec, num_pages=num_pages, num_slots=13, dtype=torch.float32)
        kv.states.s.fill_(torch.nan)
        kv.states.tails.fill_(torch.nan)
        self.runner = Runner(model, kv, torch.device("cpu"))
        context = min(256, num_pages * PAGE)
        self.scheduler = Scheduler(
            limits(
                vocab_size=512,
                context=context,
                num_pages=num_pages,
                prefill_tokens=64,
                num_slots=8,
                num_snapshots=num_snapshots,
            )
        )
        self.said: dict[str, list[int]] = defaultdict(list)
        self.cached: dict[str, int] = {}
        self.preempted = 0

    def submit(self, prompts: Mapping[str, list[int]]) -> None:
        for name, tokens in prompts.items():
            asked = request(name, tokens, max_tokens=COUNT, ignore_eos=True)
            self.scheduler.submit(asked, seed=0, now_s=0.0)

    def step(self) -> None:
        plan = self.scheduler.plan(0.0)
        self.preempted += len(plan.preempted)
        sampled, _ = self.runner.step(plan)
        for event in self.scheduler.commit(plan, sampled, 0.0):
            if isinstance(event, Sampled):
                self.said[event.id] += event.tokens
            if isinstance(event, Ended):
                self.cached[event.id] = event.cached_tokens

    def to_the_end(self) -> dict[str, list[int]]:
        while self.scheduler.num_running or self.scheduler.num_waiting:
            self.step()
        return dict(self.said)


@pytest.fixture(scope="module")
def alone(model: CausalModel) -> dict[str, list[int]]:
    """What the model says to each without an engine, from states that are zero."""
    return {name: greedy(model, tokens) for name, tokens in PROMPTS.items()}


def greedy(model: CausalModel, prompt: list[int]) -> list[int]:
    kv = pool(model)
    tokens, said = prompt, list[int]()
    while len(said) < COUNT:
        past = 0 if not said else len(prompt) + len(said) - 1
        said.append(int(model(Batch.of([(tokens, past, (1, 2, 3))], state_slots=[1]), kv).argmax()))
        tokens = said[-1:]
    return said


def test_together_they_are_answered_as_alone(model: CausalModel, alone: dict[str, list[int]]) -> None:
    loop = Loop(model, num_pages=32)
    loop.submit(PROMPTS)

    assert loop.to_the_end() == alone
    assert loop.preempted == 0


def test_those_that_lost_their_place_go_on(model: CausalModel, alone: dict[str, list[int]]) -> None:
    loop = Loop(model, num_pages=7)
    loop.submit(PROMPTS)

    assert loop.to_the_end() == alone
    assert loop.preempted > 0


@pytest.mark.parametrize(("length", "cached"), [(65, 64), (100, 64), (200, 192)])
def test_one_that_goes_on_from_a_snapshot_is_answered_as_afresh(
    model: CausalModel, length: int, cached: int
) -> None:
    loop = Loop(model, num_pages=32)
    tokens = random_tokens(length, seed=length)
    loop.submit({"cold": tokens})
    loop.to_the_end()
    loop.submit({"warm": tokens})

    answers = loop.to_the_end()

    assert answers["warm"] == answers["cold"]
    assert loop.cached == {"cold": 0, "warm": cached}


def test_the_next_turn_is_answered_as_afresh(model: CausalModel) -> None:
    loop, afresh = Loop(model, num_pages=32), Loop(model, num_pages=32, num_snapshots=0)
    loop.submit({"first": PROMPTS["100"]})
    tokens = [*PROMPTS["100"], *loop.to_the_end()["first"], 3, 4, 5]

    for each in (loop, afresh):
        each.submit({"second": tokens})

    assert loop.to_the_end()["second"] == afresh.to_the_end()["second"]
    assert (loop.cached["second"], afresh.cached["second"]) == (128, 0)


def test_a_slot_that_was_left_is_as_new(model: CausalModel, alone: dict[str, list[int]]) -> None:
    loop = Loop(model, num_pages=32)
    loop.submit(PROMPTS)
    for _ in range(6):
        loop.step()
    for name in ("5", "100"):
        loop.scheduler.cancel(StreamId(name), 0.0)
    loop.said.pop("5")
    loop.submit({"5": PROMPTS["5"]})

    answers = loop.to_the_end()

    assert {name: answers[name] for name in alone if name != "100"} == {
        name: said for name, said in alone.items() if name != "100"
    }


def test_the_neuron_loads_it_with_a_slot_for_each_row(tmp_path: Path) -> None:
    options = LoadOptions(
        path=write_qwen3_5(tmp_path),
        devices=("cpu",),
        dtype="float32",
        kv_bytes=1 << 20,
        max_batch=4,
        max_waiting=4,
        prefill_tokens=64,
        threads=1,
    )

    runner = Runner.load(options, SOLO, lambda _stage, _done: None)

    assert _limits(runner, options).num_slots == 4
    assert runner._kv.states.num_slots == 1 + 4 + 2
