"""Continuous batching: who takes part in a step, who waits, who gives way, and that all end well."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.engine import EOS, VOCAB, Bench, alone, limits, request
from cortex_neuron.engine.choosing import Logprobs
from cortex_neuron.engine.messages import Ended, Sampled
from cortex_neuron.engine.plan import Plan
from cortex_neuron.engine.scheduler import Scheduler
from cortex_neuron.model.spec import PAGE
from cortex_proto.errors import BadRequestError, BusyError, ContextLengthError
from cortex_proto.ids import StreamId


def shape(plan: Plan) -> list[tuple[str, int, bool]]:
    """Say of each row whose it is, how many tokens it has, and whether it gets a next one."""
    return [(row.id, len(row.tokens), row.draw is not None) for row in plan.rows]


def prompt(length: int, start: int = 0) -> list[int]:
    return [(start + place) % VOCAB for place in range(length)]


def test_a_prompt_is_computed_in_pieces_and_then_decoded() -> None:
    bench = Bench(prefill_tokens=64)
    bench.submit(request("a", prompt(100), max_tokens=2))

    assert [shape(plan) for plan in bench.run()] == [[("a", 64, False)], [("a", 36, True)], [("a", 1, True)]]


def test_decoding_comes_before_prompts_and_outside_their_budget() -> None:
    bench = Bench(prefill_tokens=64)
    bench.submit(request("a"))
    bench.step()
    bench.submit(request("b", prompt(100)))
    bench.submit(request("c"))

    assert shape(bench.step()) == [("a", 1, True), ("b", 64, False)]
    assert shape(bench.step()) == [("a", 1, True), ("b", 36, True), ("c", 3, True)]


def test_a_full_batch_keeps_others_waiting_and_says_so() -> None:
    bench = Bench(max_batch=1)
    bench.submit(request("a"))
    bench.submit(request("b"))

    plan = bench.step()

    assert shape(plan) == [("a", 3, True)]
    assert plan.because == "3 prompt tokens of 1; the next waits: 1 run already"


def test_a_prompt_without_pages_waits_until_some_are_free() -> None:
    bench = Bench(num_pages=4, prefill_tokens=1000)
    bench.submit(request("a", prompt(130), max_tokens=2))
    bench.submit(request("b", prompt(64), max_tokens=1))

    plan = bench.step()

    assert plan.because == "130 prompt tokens of 1; the next waits: it needs 2 pages, 1 are free"
    assert [shape(plan) for plan in bench.run()] == [[("a", 1, True)], [("b", 64, True)]]


def test_too_many_waiting_is_busy() -> None:
    bench = Bench(max_waiting=2)
    bench.submit(request("a"))
    bench.submit(request("b"))

    with pytest.raises(BusyError):
        bench.submit(request("c"))


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers() -> None:
    bench = Bench(context=100)

    with pytest.raises(ContextLengthError) as refusal:
        bench.submit(request("a", prompt(100)))

    assert str(refusal.value) == (
        "This model's maximum context length is 100 tokens. However, your messages resulted in 100 tokens."
    )


@pytest.mark.parametrize("tokens", [[], [VOCAB], [-1]])
def test_tokens_that_the_model_does_not_have_are_refused(tokens: list[int]) -> None:
    with pytest.raises(BadRequestError):
        Bench().submit(request("a", tokens))


def test_an_id_in_use_is_refused() -> None:
    bench = Bench()
    bench.submit(request("a"))

    with pytest.raises(BadRequestError):
        bench.submit(request("a"))


@pytest.mark.parametrize(("asked", "given"), [(None, 10), (1000, 10), (4, 4)])
def test_an_answer_is_as_long_as_asked_if_the_context_leaves_it(asked: int | None, given: int) -> None:
    bench = Bench(context=100)
    bench.submit(request("a", prompt(90), max_tokens=asked))

    bench.run()

    [ended] = bench.ended["a"]
    assert (ended.reason, ended.prompt_tokens, ended.output_tokens) == ("length", 90, given)
    assert bench.tokens["a"] == alone(prompt(90), given)


def test_the_end_of_sequence_ends_an_answer_and_is_counted_but_not_given() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(request("a"), seed=0, now_s=0.0)
    scheduler.commit(scheduler.plan(0.0), [5], 1.0)

    [ended] = scheduler.commit(scheduler.plan(1.0), [EOS], 2.0)

    assert (ended.id, ended.reason, ended.output_tokens) == ("a", "stop", 2)  # type: ignore[union-attr]
    assert (scheduler.num_running, scheduler.num_free_pages) == (0, 64)


def test_the_end_of_sequence_may_be_ignored() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(request("a", ignore_eos=True), seed=0, now_s=0.0)

    assert scheduler.commit(scheduler.plan(0.0), [EOS], 1.0) == [Sampled(StreamId("a"), [EOS])]
    assert scheduler.num_running == 1


def test_times_are_told_apart() -> None:
    bench = Bench(max_batch=1, prefill_tokens=64)
    bench.submit(request("a", max_tokens=3))
    bench.submit(request("b", prompt(100), max_tokens=4))

    bench.run()

    [ended] = bench.ended["b"]
    assert (ended.queue_s, ended.prefill_s, ended.decode_s) == (3.0, 2.0, 3.0)


def test_the_youngest_gives_way_and_goes_on_with_the_same_tokens() -> None:
    bench = Bench(num_pages=4, prefill_tokens=1000)
    bench.submit(request("old", prompt(60), max_tokens=100))
    bench.submit(request("young", prompt(120, start=50), max_tokens=20))

    plans = bench.run()

    preempted = [plan for plan in plans if plan.preempted]
    assert [plan.preempted for plan in preempted] == [("young",)]
    assert "the youngest gave way: young" in preempted[0].because
    assert bench.tokens["old"] == alone(prompt(60), 100)
    assert bench.tokens["young"] == alone(prompt(120, start=50), 20)
    [ended] = bench.ended["young"]
    assert (ended.prompt_tokens, ended.output_tokens) == (120, 20)


def test_a_preempted_request_comes_before_those_that_waited() -> None:
    bench = Bench(num_pages=4, prefill_tokens=1000, max_batch=2)
    bench.submit(request("old", prompt(60), max_tokens=100))
    bench.submit(request("young", prompt(120), max_tokens=20))
    bench.submit(request("later", prompt(60), max_tokens=1))

    plans = bench.run()

    [preemption] = [place for place, plan in enumerate(plans) if plan.preempted]
    assert next(row.id for plan in plans[preemption:] for row in plan.rows if row.id != "old") == "young"


def test_the_number_of_the_token_drawn_goes_on_after_preemption() -> None:
    bench = Bench(num_pages=4, prefill_tokens=1000)
    bench.submit(request("old", prompt(60), max_tokens=100))
    bench.submit(request("young", prompt(120), max_tokens=20, seed=5))

    drawn = [row.draw for plan in bench.run() for row in plan.rows if row.id == "young" and row.draw]

    assert [draw.index for draw in drawn] == list(range(20))
    assert {draw.seed for draw in drawn} == {5}


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_cancel_frees_the_pages_at_any_stage(steps: int) -> None:
    bench = Bench(prefill_tokens=64)
    bench.submit(request("a", prompt(100)))
    for _ in range(steps):
        bench.step()

    bench.cancel("a")

    assert [ended.reason for ended in bench.ended["a"]] == ["cancelled"]
    assert bench.ended["a"][0].output_tokens == len(bench.tokens["a"])
    assert bench.scheduler.num_free_pages == 64
    assert bench.scheduler.plan(bench.now_s).rows == ()


def test_cancelling_what_is_over_does_nothing() -> None:
    assert Scheduler(limits()).cancel(StreamId("a"), 0.0) is None


def test_what_was_cancelled_during_a_step_gets_nothing_of_it() -> None:
    bench = Bench()
    bench.submit(request("a"))
    bench.submit(request("b"))
    plan = bench.scheduler.plan(0.0)

    bench.cancel("a")
    events = bench.scheduler.commit(plan, [11, 12], 1.0)

    assert events == [Sampled(StreamId("b"), [12])]


def test_a_failed_step_drops_its_requests_only() -> None:
    bench = Bench(max_batch=1)
    bench.submit(request("a"))
    bench.submit(request("b", max_tokens=3))
    plan = bench.scheduler.plan(0.0)

    assert bench.scheduler.abandon(plan) == ["a"]

    bench.run()
    assert bench.tokens["b"] == alone([1, 2, 3], 3)
    assert bench.scheduler.num_free_pages == 64


@dataclass(frozen=True)
class Visit:
    """A request that comes after some steps, and may be cancelled some steps later."""

    arrives: int
    num_prompt: int
    max_tokens: int
    cancelled_after: int | None
    num_shared: int
    """So many tokens at the start are the same as others'."""

    def prompt(self, place: int) -> list[int]:
        shared = prompt(min(self.num_shared, self.num_prompt))
        return shared + prompt(self.num_prompt - len(shared), 10 + place)


visits = st.lists(
    st.builds(
        Visit,
        arrives=st.integers(0, 60),
        num_prompt=st.integers(1, 200),
        max_tokens=st.integers(1, 120),
        cancelled_after=st.none() | st.integers(0, 80),
        num_shared=st.sampled_from([0, 63, 64, 65, 128, 130, 200]),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(
    visits=visits,
    num_pages=st.integers(4, 9),
    max_batch=st.integers(1, 4),
    prefill_tokens=st.integers(1, 150),
    num_snapshots=st.none() | st.integers(0, 5),
)
def test_requests_come_and_go_and_each_gets_what_it_would_get_alone(
    visits: list[Visit], num_pages: int, max_batch: int, prefill_tokens: int, num_snapshots: int | None
) -> None:
    bench = Bench(num_pages=num_pages, max_batch=max_batch, prefill_tokens=prefill_tokens)
    if num_snapshots is not None:
        states = {"num_slots": max_batch, "num_snapshots": num_snapshots}
        bench = Bench(**states, num_pages=num_pages, max_batch=8, prefill_tokens=PAGE + prefill_tokens)
    for now in range(160):
        for place, visit in enumerate(visits):
            if now == visit.arrives:
                bench.submit(request(str(place), visit.prompt(place), max_tokens=visit.max_tokens))
            if visit.cancelled_after is not None and now == visit.arrives + visit.cancelled_after:
                bench.cancel(str(place))
        check_step(bench)
    bench.run()

    for place, visit in enumerate(visits):
        [ended] = bench.ended[str(place)]
        said = bench.tokens[str(place)]
        count = min(visit.max_tokens, 256 - visit.num_prompt)
        assert said == alone(visit.prompt(place), count)[: len(said)]
        assert ended.output_tokens == len(said)
        assert ended.prompt_tokens == visit.num_prompt
        assert ended.reason == "cancelled" or len(said) == count
    assert bench.scheduler.num_free_pages == num_pages


def check_step(bench: Bench) -> None:
    """Take one step; nobody who decodes is left out, and prompts keep to their budget."""
    decoding = {g.request.id for g in bench.scheduler._running if g.pending == 1}
    plan = bench.step()
    rows, prompts = plan.rows, plan.rows[plan.num_decoding :]
    assert {row.id for row in rows[: plan.num_decoding]} == decoding - set(plan.preempted)
    assert sum(len(row.tokens) for row in prompts) <= bench.limits.prefill_tokens
    draws = [row.draw is not None for row in rows]
    assert draws == sorted(draws, reverse=True)
    assert bench.limits.num_slots or all(draws[:-1])
    assert len({row.id for row in rows}) == len(rows) <= bench.limits.max_batch
    assert all(row.past + len(row.tokens) <= len(row.pages) * PAGE for row in rows)
    holders = Counter(page for row in rows for page in row.pages)
    written = [page for row in rows for page in row.pages[row.past // PAGE :]]
    assert all(holders[page] == 1 for page in written)
    check_pages(bench)
    if bench.limits.num_slots:
        check_states(bench, plan)


def check_states(bench: Bench, plan: Plan) -> None:
    """Slots are disjoint, none is lost, and what was saved can be found."""
    states, running = bench.scheduler._states, bench.scheduler._running
    assert states is not None
    num_slots, num_snapshots = bench.limits.num_slots, bench.limits.num_snapshots
    live = {row.slot for row in plan.rows}
    assert len(live) == len(plan.rows)
    assert live <= set(range(1, num_slots + 1))
    assert states.num_free + len(running) == num_slots
    assert states.num_free_snapshots + len(states._by_key) == num_snapshots
    kept = {*states._free_snapshots, *states._by_key.values()}
    assert kept == set(range(num_slots + 1, num_slots + 1 + num_snapshots))
    assert all(len(bench.model.states[save.snapshot]) % PAGE == 0 for save in plan.saves)


def check_pages(bench: Bench) -> None:
    """Every page is held by those that run and have it, and by nobody else."""
    pages = bench.scheduler._pages
    held = Counter(page for generation in bench.scheduler._running for page in generation.pages)
    assert [pages.num_owners(page) for page in range(pages.total)] == [held[p] for p in range(pages.total)]
    assert pages.free + len(held) == pages.total


def test_an_answer_does_not_end_before_its_least_tokens() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(request("a", min_tokens=2, stop_ids=(9,)), seed=0, now_s=0.0)

    barred = []
    for _ in range(3):
        plan = scheduler.plan(0.0)
        barred += [row.draw.barred for row in plan.rows if row.draw]
        scheduler.commit(plan, [5], 1.0)

    assert barred == [(EOS, 9), (EOS, 9), ()]


def test_a_stop_token_ends_the_answer_also_where_the_end_of_the_sequence_does_not() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(request("a", stop_ids=(9,), ignore_eos=True), seed=0, now_s=0.0)

    assert scheduler.commit(scheduler.plan(0.0), [EOS], 1.0) == [Sampled(StreamId("a"), [EOS])]
    [ended] = scheduler.commit(scheduler.plan(1.0), [9], 2.0)

    assert isinstance(ended, Ended)
    assert (ended.reason, ended.output_tokens) == ("stop", 2)


@pytest.mark.parametrize(
    "fields", [{"stop_ids": (VOCAB,)}, {"stop_ids": (-1,)}, {"logit_bias": ((VOCAB, 1.0),)}]
)
def test_a_token_that_the_model_does_not_have_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError, match="tokens 0 to 100"):
        Bench().submit(request("a", **fields))


def test_penalties_count_the_tokens_of_prompt_and_answer() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(request("a", [1, 2], presence_penalty=1.0), seed=0, now_s=0.0)
    scheduler.commit(scheduler.plan(0.0), [2], 1.0)

    [row] = scheduler.plan(1.0).rows

    assert row.draw is not None
    assert row.draw.counts is not None
    assert row.draw.counts.in_output == {1: 0, 2: 1}


def test_logprobs_go_with_their_tokens() -> None:
    scheduler = Scheduler(limits())
    scheduler.submit(request("a", logprobs=0), seed=0, now_s=0.0)
    scheduler.submit(request("b"), seed=0, now_s=0.0)
    told = Logprobs(-0.5, ())

    events = scheduler.commit(scheduler.plan(0.0), [5, 6], 1.0, {StreamId("a"): told})

    assert events == [Sampled(StreamId("a"), [5], (told,)), Sampled(StreamId("b"), [6])]
