"""The ledger never promises a byte twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cortex_neuron.memory import Fit, Ledger, Need, Room, fit
from cortex_proto.catalogue import MIB
from cortex_proto.fleet import Share
from cortex_proto.ids import ModelId

A, B = ModelId("a"), ModelId("b")


def ledger(total_mib: int = 1024) -> Ledger:
    return Ledger([Room(0, "cpu:0", total_mib * MIB)])


def need(**fields: int) -> Need:
    defaults = {"fixed_bytes": 100, "least_kv_bytes": 20, "most_kv_bytes": 80, "kv_page_bytes": 10}
    return Need(**(defaults | fields))


def test_a_refusal_has_the_numbers() -> None:
    books = ledger(1024)
    assert books.reserve(A, [0], 714 * MIB) is None

    shortage = books.reserve(B, [0], 912 * MIB)

    assert shortage is not None
    assert shortage.because == "needs 912 MiB on cpu:0, 310 MiB of 1024 MiB free"
    assert (shortage.need_bytes, shortage.free_bytes) == (912 * MIB, 310 * MIB)


def test_a_refused_reservation_holds_nothing() -> None:
    books = ledger(10)

    books.reserve(A, [0], 11 * MIB)

    assert books.shares(A) == ()
    assert books.free_bytes(0) == 10 * MIB


def test_an_unknown_device_is_refused() -> None:
    shortage = ledger().reserve(A, [3], 1)

    assert shortage is not None
    assert shortage.because == "there is no device 3 on this node"


@pytest.mark.parametrize(("measured", "held"), [(5, 8), (8, 8), (9, 9)])
def test_what_was_measured_counts_only_if_it_is_more(measured: int, held: int) -> None:
    books = ledger()
    books.reserve(A, [0], 8)

    books.commit(A, 0, measured)

    assert books.shares(A) == (Share(0, held),)


def test_a_ledger_that_runs_over_has_nothing_free() -> None:
    books = ledger(10)
    books.reserve(A, [0], 10 * MIB)

    books.commit(A, 0, 12 * MIB)

    assert books.free_bytes(0) == 0


def test_release_gives_everything_back() -> None:
    books = ledger(10)
    books.reserve(A, [0], 7 * MIB)
    books.commit(A, 0, 9 * MIB)

    books.release(A)

    assert books.free_bytes(0) == 10 * MIB


class LedgerMachine(RuleBasedStateMachine):
    """Any order of reservations and releases keeps the sum within the total."""

    TOTALS = (100, 60)

    def __init__(self) -> None:
        super().__init__()
        self.books = Ledger(Room(i, f"cuda:{i}", total) for i, total in enumerate(self.TOTALS))
        self.expected: dict[ModelId, tuple[tuple[int, ...], int]] = {}

    @rule(
        name=st.sampled_from("abcd"),
        devices=st.sampled_from([(0,), (1,), (0, 1), (1, 0)]),
        size=st.integers(0, 120),
    )
    def reserve(self, name: str, devices: tuple[int, ...], size: int) -> None:
        model = ModelId(name)
        if model in self.expected:
            return
        fits = all(self.held(device) + size <= self.TOTALS[device] for device in devices)
        assert (self.books.reserve(model, devices, size) is None) == fits
        if fits:
            self.expected[model] = (devices, size)

    def held(self, device: int) -> int:
        return sum(size for devices, size in self.expected.values() if device in devices)

    @rule(name=st.sampled_from("abcd"))
    def release(self, name: str) -> None:
        self.books.release(ModelId(name))
        self.expected.pop(ModelId(name), None)

    @invariant()
    def what_is_free_and_what_is_held_make_up_the_total(self) -> None:
        for device, total in enumerate(self.TOTALS):
            assert self.books.free_bytes(device) == total - self.held(device)


TestLedger = LedgerMachine.TestCase


@pytest.mark.parametrize(
    ("free", "kv", "total"),
    [(500, 80, 180), (180, 80, 180), (179, 70, 170), (125, 20, 120), (120, 20, 120), (10, 20, 120)],
)
def test_keys_and_values_shrink_before_a_load_is_refused(free: int, kv: int, total: int) -> None:
    fitted = fit(need(), free)

    assert (fitted.kv_bytes, fitted.total_bytes) == (kv, total)


def test_what_the_catalogue_declares_is_reserved_at_least() -> None:
    fitted = fit(need(declared_bytes=300), 500)

    assert fitted == Fit(80, 300, "there is room for all keys and values wanted")


needs = st.builds(
    lambda fixed, least, more, page, declared: Need(
        fixed, least * page, (least + more) * page, page, declared
    ),
    st.integers(0, 2_000),
    st.integers(1, 20),
    st.integers(0, 100),
    st.integers(1, 50),
    st.integers(0, 5_000),
)


@given(wanted=needs, free=st.integers(0, 10_000))
def test_a_load_that_could_fit_is_never_refused(wanted: Need, free: int) -> None:
    fitted = fit(wanted, free)

    assert (fitted.total_bytes <= free) == (wanted.least_bytes <= free)
    assert fitted.kv_bytes % wanted.kv_page_bytes == 0
    assert fitted.total_bytes >= wanted.fixed_bytes + fitted.kv_bytes
