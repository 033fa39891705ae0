"""The page allocator: nothing is lost or given twice, and owners stay adjacent where they can."""

from hypothesis import given
from hypothesis import strategies as st

from cortex_neuron.engine.cache import Pages


@given(
    total=st.integers(1, 24),
    moves=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["start", "grow", "leave"]), st.integers(1, 6))
    ),
)
def test_pages_stay_disjoint_and_none_is_lost(total: int, moves: list[tuple[int, str, int]]) -> None:
    pages = Pages(total)
    owners: dict[int, tuple[int, ...]] = {}

    for owner, move, count in moves:
        held = owners.get(owner, ())
        if move == "leave":
            pages.give_back(owners.pop(owner, ()))
        elif count <= pages.free:
            after = held[-1] if held and move == "grow" else None
            owners[owner] = held + pages.take(count, after)

        used = [page for held in owners.values() for page in held]
        assert len(used) == len(set(used))
        assert set(used) <= set(range(total))
        assert pages.free + len(used) == total

    for held in owners.values():
        pages.give_back(held)
    assert pages.free == total
    assert sorted(pages.take(total)) == list(range(total))


def test_one_that_grows_gets_the_page_after_its_last() -> None:
    pages = Pages(16)
    first = pages.take(2)
    second = pages.take(2)

    assert pages.take(1, after=first[-1]) == (first[-1] + 1,)
    assert pages.take(1, after=second[-1]) == (second[-1] + 1,)


def test_the_first_owner_starts_at_the_front() -> None:
    assert Pages(16).take(3) == (0, 1, 2)


def test_a_new_owner_starts_in_the_middle_of_the_widest_gap() -> None:
    pages = Pages(20)
    pages.take(4)

    assert pages.take(4) == (10, 11, 12, 13)  # of the gap 4..19, so 6 are left on either side


def test_the_widest_gap_wins_though_an_earlier_one_would_do() -> None:
    pages = Pages(20)
    everything = pages.take(20)
    pages.give_back(everything[2:5])
    pages.give_back(everything[10:20])

    assert pages.take(2) == (14, 15)


def test_one_that_grows_into_a_neighbour_goes_on_in_another_gap() -> None:
    pages = Pages(6)
    everything = pages.take(6)
    pages.give_back(everything[1:2])
    pages.give_back(everything[3:5])

    assert pages.take(3, after=0) == (1, 3, 4)
