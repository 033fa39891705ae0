"""Prefixes that were computed before: all of them are found, and no answer changes by it."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.engine import VOCAB, Bench, alone, request
from cortex_neuron.engine.plan import Plan
from cortex_neuron.model.spec import PAGE
from cortex_proto.ids import StreamId


def prompt(length: int, start: int = 0) -> list[int]:
    return [(start + place * place) % VOCAB for place in range(length)]


def asked(bench: Bench, name: str, tokens: list[int], count: int = 3, **fields: str) -> int:
    """Ask, wait for the whole answer, see that it is right, and say how many tokens were cached."""
    bench.submit(request(name, tokens, max_tokens=count, **fields))
    bench.run()
    assert bench.tokens[name] == alone(tokens, count)
    [ended] = bench.ended[name]
    return ended.cached_tokens


@pytest.mark.parametrize(
    ("length", "cached"), [(1, 0), (64, 0), (65, 64), (128, 64), (129, 128), (200, 192), (256 - 3, 192)]
)
def test_a_repeated_prompt_computes_no_more_than_its_last_page(length: int, cached: int) -> None:
    bench = Bench()
    assert asked(bench, "first", prompt(length)) == 0

    assert asked(bench, "again", prompt(length)) == cached


@pytest.mark.parametrize(("common", "cached"), [(0, 0), (63, 0), (64, 64), (127, 64), (128, 128), (200, 192)])
def test_what_two_prompts_have_in_common_is_computed_once(common: int, cached: int) -> None:
    bench = Bench()
    asked(bench, "first", prompt(common) + [1] * (220 - common))

    assert asked(bench, "second", prompt(common) + [2] * (220 - common)) == cached


def test_the_next_turn_finds_the_answer_as_well() -> None:
    bench = Bench()
    asked(bench, "first", prompt(100), count=50)

    assert asked(bench, "second", prompt(100) + alone(prompt(100), 50) + [5, 6]) == 128


def test_a_prefix_is_found_while_the_one_that_computed_it_still_runs() -> None:
    bench = Bench()
    bench.submit(request("first", prompt(130), max_tokens=60))
    for _ in range(4):
        bench.step()

    assert asked(bench, "second", prompt(130)) == 128
    assert bench.tokens["first"] == alone(prompt(130), 60)


def test_what_is_not_computed_yet_is_not_found() -> None:
    bench = Bench(prefill_tokens=100)
    bench.submit(request("first", prompt(130)))
    bench.step()
    bench.submit(request("second", prompt(130)))

    assert [row.past for row in bench.step().rows] == [100, 64]


def test_another_salt_shares_nothing() -> None:
    bench = Bench()
    asked(bench, "first", prompt(130), salt="a")

    assert asked(bench, "second", prompt(130), salt="b") == 0
    assert asked(bench, "third", prompt(130), salt="a") == 128


def test_a_cached_prefix_makes_room_for_others_when_no_page_is_blank() -> None:
    bench = Bench(num_pages=4)
    asked(bench, "first", prompt(130))

    assert asked(bench, "other", prompt(240, start=7)) == 0
    assert asked(bench, "again", prompt(130)) == 0


def test_a_shared_prefix_lets_in_what_would_not_fit_twice() -> None:
    bench = Bench(num_pages=5, prefill_tokens=1000)
    bench.submit(request("first", prompt(240), max_tokens=10))
    bench.step()
    bench.submit(request("second", prompt(240), max_tokens=10))

    plan = bench.step()

    assert [(row.id, row.past) for row in plan.rows] == [("first", 240), ("second", 192)]
    assert plan.rows[0].pages[:3] == plan.rows[1].pages[:3]
    bench.run()
    assert bench.tokens["first"] == bench.tokens["second"] == alone(prompt(240), 10)


def test_one_that_waits_for_pages_says_how_many_it_needs_beside_the_cached() -> None:
    bench = Bench(num_pages=6, prefill_tokens=1000)
    asked(bench, "first", prompt(130))
    bench.submit(request("big", prompt(200, start=9)))
    bench.submit(request("second", prompt(130) + [3] * 100))

    assert bench.step().blocked == "it needs 2 pages, 0 are free"


def test_one_that_gave_way_computes_only_what_was_lost() -> None:
    bench = Bench(num_pages=6, prefill_tokens=1000)
    bench.submit(request("old", prompt(60), max_tokens=100))
    bench.submit(request("young", prompt(120, start=50), max_tokens=100))

    plans = bench.run()

    preemption = next(place for place, plan in enumerate(plans) if plan.preempted)
    resumed = next(row for plan in plans[preemption:] for row in plan.rows if row.id == "young")
    assert (resumed.past, len(resumed.tokens)) == (192, 1)
    assert bench.tokens["young"] == alone(prompt(120, start=50), 100)
    assert [ended.cached_tokens for ended in bench.ended["young"]] == [0]


def test_a_step_that_failed_leaves_nothing_to_find() -> None:
    bench = Bench()
    bench.submit(request("first", prompt(130)))
    plan = bench.scheduler.plan(0.0)

    bench.scheduler.abandon(plan)

    assert asked(bench, "second", prompt(130)) == 0


def test_what_was_cancelled_leaves_what_it_had_computed() -> None:
    bench = Bench(prefill_tokens=64)
    bench.submit(request("first", prompt(250)))
    bench.step()
    bench.step()
    bench.cancel("first")

    assert asked(bench, "second", prompt(250)) == 128


@dataclass
class Witness:
    """Remembers every beginning that a step has computed, page by page."""

    prompts: dict[str, list[int]] = field(default_factory=dict)
    known: set[tuple[int, ...]] = field(default_factory=set)
    admitted: set[StreamId] = field(default_factory=set)

    def longest(self, tokens: list[int]) -> int:
        """Count the tokens that the best cache there can be would have of `tokens`."""
        ends = range(PAGE, len(tokens), PAGE)
        return next(
            (end - PAGE for end in ends if tuple(tokens[:end]) not in self.known), ends[-1] if ends else 0
        )

    def watch(self, plan: Plan, said: dict[str, list[int]]) -> None:
        """See that whoever is new found all there is; `said` is what was known before the step."""
        for row in plan.rows:
            if row.id not in self.admitted:
                assert row.past == self.longest(self.prompts[row.id])
                self.admitted.add(row.id)
        for row in plan.rows:
            tokens = self.prompts[row.id] + said.get(row.id, [])
            computed = row.past + len(row.tokens)
            self.known |= {tuple(tokens[:end]) for end in range(PAGE, computed + 1, PAGE)}


@settings(deadline=None)
@given(
    asks=st.lists(
        st.tuples(
            st.integers(0, 3), st.sampled_from([0, 64, 100, 128, 192]), st.integers(1, 60), st.integers(0, 9)
        ),
        min_size=1,
        max_size=10,
    ),
    prefill_tokens=st.integers(1, 300),
)
def test_with_room_for_all_whoever_comes_finds_all_that_was_ever_computed(
    asks: list[tuple[int, int, int, int]], prefill_tokens: int
) -> None:
    bench = Bench(num_pages=200, max_waiting=10, prefill_tokens=prefill_tokens)
    witness = Witness()

    def step() -> None:
        said = {name: list(tokens) for name, tokens in bench.tokens.items()}
        witness.watch(bench.step(), said)

    for place, (family, num_shared, num_own, pause) in enumerate(asks):
        tokens = prompt(num_shared, start=family) + prompt(num_own, start=20 + place % 2)
        witness.prompts[str(place)] = tokens
        bench.submit(request(str(place), tokens, max_tokens=70))
        for _ in range(pause * 10):
            step()
    while bench.scheduler.num_running + bench.scheduler.num_waiting:
        step()

    for name, tokens in witness.prompts.items():
        count = min(70, 256 - len(tokens))
        assert bench.tokens[name] == alone(tokens, count)
    assert bench.scheduler.num_free_pages == 200
