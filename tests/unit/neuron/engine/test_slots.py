"""Which request has which slot, over plans that come and go."""

import pytest

from cortex_neuron.engine.plan import PlanRow
from cortex_neuron.engine.slots import Slots
from cortex_proto.ids import StreamId


def row(name: str, past: int = 0) -> PlanRow:
    return PlanRow(StreamId(name), [1], past, (0,), None)


def test_a_request_keeps_its_slot_and_is_zeroed_once() -> None:
    slots = Slots(4)
    (first,), zeroed = slots.assign([row("a")])

    (again, second), zeroed_later = slots.assign([row("a", 1), row("b")])

    assert first == again != second
    assert (zeroed, zeroed_later) == ([first], [second])


def test_slot_0_is_nobodys() -> None:
    slots, _ = Slots(4).assign([row("a"), row("b"), row("c")])

    assert sorted(slots) == [1, 2, 3]


def test_who_is_absent_gives_its_slot_back() -> None:
    slots = Slots(3)
    slots.assign([row("a"), row("b")])

    given, zeroed = slots.assign([row("b", 1), row("c")])

    assert sorted(given) == [1, 2]
    assert zeroed == [given[1]]
    slots.assign([])
    assert slots.num_free == 2


def test_who_begins_anew_is_zeroed_again() -> None:
    slots = Slots(2)
    slots.assign([row("a")])
    slots.assign([row("a", 1)])

    assert slots.assign([row("a")]) == ([1], [1])


def test_a_past_without_a_slot_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="a has a past and no slot"):
        Slots(2).assign([row("a", 1)])
