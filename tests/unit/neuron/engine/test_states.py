"""State slots and snapshots: a recurrent model goes on only from where its state was kept."""

import pytest

from builders.engine import Bench, alone, request
from cortex_neuron.engine.cache import Chain
from cortex_neuron.engine.generation import SNAPSHOT_TOKENS
from cortex_neuron.engine.plan import Plan, Save
from cortex_neuron.engine.states import States
from cortex_neuron.model.spec import PAGE


def prompt(length: int, start: int = 0) -> list[int]:
    return [(start + place * place) % 101 for place in range(length)]


def bench(**fields: int) -> Bench:
    return Bench(**({"num_slots": 4, "num_snapshots": 8, "prefill_tokens": 1000} | fields))


def asked(bench: Bench, name: str, tokens: list[int], count: int = 3) -> int:
    """Ask, wait for the whole answer, see that it is right, and say how many tokens were cached."""
    bench.submit(request(name, tokens, max_tokens=count))
    bench.run()
    assert bench.tokens[name] == alone(tokens, count)
    [ended] = bench.ended[name]
    return ended.cached_tokens


def pieces(plans: list[Plan], name: str) -> list[int]:
    """Say how many tokens each step computed of a prompt."""
    return [len(row.tokens) for plan in plans for row in plan.rows if row.id == name and len(row.tokens) > 1]


@pytest.mark.parametrize(
    ("length", "cut"),
    [(10, [10]), (64, [64]), (65, [64]), (128, [64, 64]), (150, [64, 64, 22]), (250, [64, 64, 64, 58])],
)
def test_pieces_of_a_prompt_end_at_page_boundaries_and_one_at_the_last(length: int, cut: list[int]) -> None:
    tight, wide = bench(prefill_tokens=100), bench()
    for each in (tight, wide):
        each.submit(request("a", prompt(length), max_tokens=2))

    last = (length - 1) // PAGE * PAGE
    assert pieces(tight.run(), "a") == cut
    assert pieces(wide.run(), "a") == [tokens for tokens in (last, length - last) if tokens > 1]


def test_pieces_that_go_on_come_behind_those_that_draw() -> None:
    both = bench()
    both.submit(request("long", prompt(150)))
    both.submit(request("short", prompt(30)))

    assert [(row.id, row.draw is not None) for row in both.step().rows] == [("short", True), ("long", False)]


@pytest.mark.parametrize(("length", "cached"), [(64, 0), (65, 64), (128, 64), (200, 192)])
def test_a_repeated_prompt_goes_on_from_its_last_page_boundary(length: int, cached: int) -> None:
    one = bench()
    assert asked(one, "first", prompt(length)) == 0

    assert asked(one, "again", prompt(length)) == cached


def test_without_snapshots_nothing_is_shared_and_no_prompt_is_cut() -> None:
    one = bench(num_snapshots=0)
    one.submit(request("first", prompt(200), max_tokens=1))

    assert pieces(one.run(), "first") == [200]
    assert asked(one, "again", prompt(200)) == 0


def test_where_prompts_part_is_found_from_the_third_on() -> None:
    one = bench()
    prompts = [prompt(150) + [own] * 80 for own in (1, 2, 3)]

    cached = [asked(one, str(number), tokens) for number, tokens in enumerate(prompts)]

    assert cached == [0, 0, 128]


def test_a_long_prompt_is_kept_now_and_then() -> None:
    one = bench(context=8192, num_pages=200)
    tokens = prompt(2 * SNAPSHOT_TOKENS + 300)
    asked(one, "first", tokens, count=1)

    assert asked(one, "shorter", tokens[: 2 * SNAPSHOT_TOKENS - 10], count=1) == SNAPSHOT_TOKENS
    assert asked(one, "as long", tokens, count=1) == (len(tokens) - 1) // PAGE * PAGE


def test_the_next_turn_goes_on_from_the_last_page_boundary_of_the_answer() -> None:
    one = bench()
    asked(one, "first", prompt(70), count=140)

    assert asked(one, "second", prompt(70) + alone(prompt(70), 140) + [5]) == 192


def test_an_answer_takes_one_snapshot_however_long_it_is() -> None:
    one = bench()
    asked(one, "first", prompt(70), count=180)

    states = one.scheduler._states
    assert states is not None
    assert states.num_free_snapshots == 8 - 2  # the prompt's and the answer's


def test_one_that_gave_way_goes_on_from_its_last_page_boundary() -> None:
    both = bench(num_pages=6)
    both.submit(request("old", prompt(60), max_tokens=100))
    both.submit(request("young", prompt(120, start=50), max_tokens=100))

    plans = both.run()

    preemption = next(place for place, plan in enumerate(plans) if plan.preempted)
    resumed = next(row for plan in plans[preemption:] for row in plan.rows if row.id == "young")
    assert (resumed.past, len(resumed.tokens)) == (192, 1)
    assert both.tokens["young"] == alone(prompt(120, start=50), 100)


def test_a_lost_snapshot_leaves_the_pages_and_a_lost_page_the_snapshot() -> None:
    one = bench(num_snapshots=1, num_pages=12)
    asked(one, "first", prompt(130))
    asked(one, "other", prompt(130, start=7))
    keys = Chain("").keys(prompt(130), 2)
    states, pages = one.scheduler._states, one.scheduler._pages
    assert states is not None

    assert (states.deepest(keys), len(pages.find(keys))) == (0, 2)
    pages.give_back(pages.take(11))
    other = Chain("").keys(prompt(130, start=7), 2)
    assert (states.deepest(other), len(pages.find(other))) == (2, 1)
    assert asked(one, "other again", prompt(130, start=7)) == 0


def test_one_without_a_slot_waits_and_says_so() -> None:
    both = bench(num_slots=1)
    both.submit(request("a"))
    both.submit(request("b"))

    assert both.step().blocked == "no state slot is free"
    both.run()
    assert both.tokens["b"] == alone([1, 2, 3], 253)


def test_a_step_that_failed_leaves_no_snapshot_and_frees_the_slots() -> None:
    one = bench()
    one.submit(request("a", prompt(130)))
    plan = one.scheduler.plan(0.0)
    assert plan.saves

    one.scheduler.abandon(plan)

    states = one.scheduler._states
    assert states is not None
    assert (states.num_free, states.num_free_snapshots) == (4, 8)
    assert asked(one, "again", prompt(130)) == 0


def test_the_snapshot_not_used_for_longest_makes_room() -> None:
    states = States(num_slots=1, num_snapshots=2)
    for key in (b"a", b"b"):
        states.save(1, key)
    states.saved(states.due()[2])
    states.leave(states.enter(b"a"))

    states.save(1, b"c")
    states.saved(states.due()[2])

    assert [states.deepest([key]) for key in (b"a", b"b", b"c")] == [1, 0, 1]


def test_a_snapshot_being_written_is_not_found_and_does_not_make_room() -> None:
    states = States(num_slots=2, num_snapshots=1)
    states.save(1, b"a")
    states.save(2, b"b")

    assert states.deepest([b"a"]) == 0
    assert states.due() == ((), (), (Save(1, 3, b"a"),))


def test_two_that_save_the_same_keep_it_once() -> None:
    states = States(num_slots=2, num_snapshots=3)
    states.save(1, b"a")
    states.save(2, b"a")

    states.saved(states.due()[2])

    assert states.num_free_snapshots == 2
    assert states.deepest([b"a"]) == 1


def test_a_new_sequence_starts_from_nothing_and_one_that_is_known_from_its_snapshot() -> None:
    states = States(num_slots=2, num_snapshots=1)
    first = states.enter(None)
    states.save(first, b"a")
    states.saved(states.due()[2])

    second = states.enter(b"a")

    assert states.due() == ((), ((3, second),), ())
    assert {first, second} == {1, 2}
