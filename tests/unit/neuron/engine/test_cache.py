"""The page allocator: nothing is lost, what is full is found again, owners stay adjacent where they can."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_neuron.engine.cache import Chain, Pages
from cortex_neuron.model.spec import PAGE


@dataclass
class Owner:
    """A sequence of one of three families; those of one family are equal as far as they are long."""

    family: int
    held: tuple[int, ...] = ()

    def keys(self, count: int) -> list[bytes]:
        return [bytes([self.family, place]) for place in range(count)]


@dataclass
class Owners:
    """Six owners of pages, who keep to the rules, and what is in the pages that they filled."""

    pages: Pages
    owners: list[Owner] = field(default_factory=lambda: [Owner(number % 3) for number in range(6)])
    content: dict[int, bytes] = field(default_factory=dict)

    def move(self, owner: Owner, move: str, count: int) -> None:
        match move:
            case "leave":
                self.pages.give_back(owner.held)
                owner.held = ()
            case "fill":
                for page, key in zip(owner.held, owner.keys(len(owner.held)), strict=True):
                    self.content[page] = key
                    self.pages.publish(page, key)
            case "start" if not owner.held:
                found = self.pages.find(owner.keys(count))
                assert [self.content[page] for page in found] == owner.keys(len(found))
                self._grow(owner, found, count)
            case "grow":
                self._grow(owner, (), count)

    def _grow(self, owner: Owner, found: tuple[int, ...], count: int) -> None:
        if count > self.pages.room(found):
            return
        self.pages.hold(found)
        owner.held += found
        taken = self.pages.take(count, owner.held[-1] if owner.held else None)
        for page in taken:
            self.content.pop(page, None)
        owner.held += taken

    def check(self) -> None:
        pages = self.pages
        owned = Counter(page for owner in self.owners for page in owner.held)
        assert [pages.num_owners(page) for page in range(pages.total)] == [
            owned[page] for page in range(pages.total)
        ]
        assert all(page in self.content for page, count in owned.items() if count > 1)
        assert pages.free + len(owned) == pages.total
        assert 0 <= pages.cached <= pages.free


@given(
    total=st.integers(1, 24),
    moves=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["start", "grow", "fill", "leave"]), st.integers(1, 6)),
        max_size=60,
    ),
)
def test_pages_belong_to_those_that_hold_them_and_none_is_lost(
    total: int, moves: list[tuple[int, str, int]]
) -> None:
    pages = Pages(total)
    owners = Owners(pages)

    for number, move, count in moves:
        owners.move(owners.owners[number], move, count)
        owners.check()

    for owner in owners.owners:
        pages.give_back(owner.held)
    assert pages.free == total
    assert sorted(pages.take(total)) == list(range(total))
    assert pages.cached == 0


def filled(pages: Pages, count: int, family: int = 0, after: int | None = None) -> tuple[int, ...]:
    """Take pages and publish them."""
    taken = pages.take(count, after)
    for page, key in zip(taken, Owner(family).keys(count), strict=True):
        pages.publish(page, key)
    return taken


def test_what_is_let_go_is_found_again() -> None:
    pages = Pages(8)
    held = filled(pages, 3)
    pages.give_back(held)

    assert pages.find(Owner(0).keys(5)) == held
    assert (pages.free, pages.cached) == (8, 3)


def test_what_is_not_full_is_not_found() -> None:
    pages = Pages(8)
    pages.give_back(pages.take(3))

    assert pages.find(Owner(0).keys(3)) == ()
    assert pages.cached == 0


def test_a_gap_in_what_is_known_ends_what_is_found() -> None:
    pages = Pages(8)
    held = filled(pages, 3)
    first, _, third = Owner(0).keys(3)

    assert pages.find([first, b"other", third]) == held[:1]


def test_a_shared_page_is_free_when_the_last_owner_lets_go() -> None:
    pages = Pages(4)
    held = filled(pages, 2)
    pages.hold(held)

    pages.give_back(held)
    assert pages.free == 2
    pages.give_back(held)
    assert pages.free == 4


def test_what_was_let_go_first_makes_room_and_of_one_sequence_its_end() -> None:
    pages = Pages(6)
    first, second = filled(pages, 3, family=1), filled(pages, 3, family=2)
    pages.give_back(second)
    pages.give_back(first)

    pages.take(4)

    assert pages.find(Owner(2).keys(3)) == ()
    assert pages.find(Owner(1).keys(3)) == first[:2]


def test_what_is_found_again_is_the_last_to_make_room() -> None:
    pages = Pages(4)
    first, second = filled(pages, 2, family=1), filled(pages, 2, family=2)
    pages.give_back(first)
    pages.give_back(second)
    pages.hold(first)
    pages.give_back(first)

    pages.take(2)

    assert pages.find(Owner(1).keys(2)) == first


def test_nothing_cached_is_lost_while_a_page_is_blank() -> None:
    pages = Pages(8)
    held = filled(pages, 4)
    pages.give_back(held[1:])

    grown = pages.take(4, after=held[0])

    assert pages.find(Owner(0).keys(4)) == held
    assert not set(grown) & set(held)


def test_the_first_of_equal_pages_is_found() -> None:
    pages = Pages(4)
    first, second = filled(pages, 2), filled(pages, 2)

    pages.give_back(second)

    assert pages.find(Owner(0).keys(2)) == first
    assert pages.cached == 0


@pytest.mark.parametrize(("let_go", "taken"), [("first", 2), ("last", 5)])
def test_one_that_grows_takes_a_cached_neighbour_unless_that_was_let_go_lately(
    let_go: str, taken: int
) -> None:
    pages = Pages(6)
    grower = pages.take(2)
    neighbour, other = filled(pages, 2, family=1, after=1), filled(pages, 2, family=2, after=3)
    for held in (neighbour, other) if let_go == "first" else (other, neighbour):
        pages.give_back(held)

    assert pages.take(1, after=grower[-1]) == (taken,)


def test_keys_stand_for_all_tokens_so_far_and_the_salt() -> None:
    tokens = list(range(3 * PAGE))
    other = [*tokens[:PAGE], 0, *tokens[PAGE + 1 :]]
    keys = Chain("").keys(tokens, 3)

    assert len(set(keys)) == 3
    assert Chain("").keys(other, 3)[:1] == keys[:1]
    assert not set(Chain("").keys(other, 3)[1:]) & set(keys)
    assert not set(Chain("salt").keys(tokens, 3)) & set(keys)


def test_a_chain_goes_on_where_it_stopped() -> None:
    tokens = list(range(4 * PAGE))
    grown = Chain("")
    grown.keys(tokens[:PAGE], 1)

    assert grown.keys(tokens, 4) == Chain("").keys(tokens, 4)
    assert grown.keys(tokens, 2) == Chain("").keys(tokens, 2)


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
