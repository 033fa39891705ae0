"""The eviction policy: who leaves, and who never does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.fleet import A, resident
from cortex_evictor.policy import Strategy, choose_victims
from cortex_proto.catalogue import MIB
from cortex_proto.ids import ModelId
from cortex_proto.placement import MakeRoom, NoVictims, Resident, Victims


def ask(*residents: Resident, need_mib: int = 100, priority: int = 100) -> MakeRoom:
    return MakeRoom(A, ModelId("new"), priority, need_mib * MIB, residents)


OLD, NEW = resident("old", idle_s=90), resident("young", idle_s=10)
LOW = resident("low", priority=50, idle_s=1)
BIG = resident("big", mib=200, idle_s=5)


@pytest.mark.parametrize(
    ("strategy", "question", "victims"),
    [
        pytest.param("lru", ask(NEW, OLD), ["old"], id="least recently used first"),
        pytest.param("lru", ask(NEW, LOW, OLD), ["old"], id="lru knows no class below the incoming"),
        pytest.param("priority", ask(NEW, LOW, OLD), ["low"], id="priority: lowest class first"),
        pytest.param("priority", ask(NEW, OLD), ["old"], id="priority: then least recently used"),
        pytest.param("lru", ask(NEW, OLD, need_mib=200), ["old", "young"], id="as many as it takes"),
        pytest.param("lru", ask(NEW, OLD, BIG, need_mib=200), ["old", "young"], id="not one more"),
        pytest.param("lru", ask(OLD, BIG, need_mib=200), ["big"], id="a superfluous victim is spared"),
        pytest.param("lru", ask(resident("b"), resident("a")), ["a"], id="a tie goes to the smaller id"),
        pytest.param("lru", ask(OLD, need_mib=0), [], id="nobody leaves when nothing is needed"),
    ],
)
def test_who_leaves(strategy: Strategy, question: MakeRoom, victims: list[str]) -> None:
    answer = choose_victims(question, strategy)

    assert isinstance(answer, Victims)
    assert list(answer.models) == victims


@pytest.mark.parametrize(
    ("residents", "busy"),
    [
        pytest.param([resident("r", pinned=True)], False, id="pinned"),
        pytest.param([resident("r", pinned=True, busy=True)], False, id="pinned and busy"),
        pytest.param([resident("r", priority=101)], False, id="of a higher class"),
        pytest.param([resident("r", mib=99)], False, id="too small"),
        pytest.param([resident("r", busy=True)], True, id="busy"),
        pytest.param([resident("r", mib=50), resident("s", mib=50, busy=True)], True, id="half of it busy"),
    ],
)
@pytest.mark.parametrize("strategy", ["lru", "priority"])
def test_who_cannot_leave(strategy: Strategy, residents: list[Resident], *, busy: bool) -> None:
    answer = choose_victims(ask(*residents), strategy)

    assert isinstance(answer, NoVictims)
    assert answer.busy == busy


def test_every_answer_gives_the_numbers() -> None:
    victims = choose_victims(ask(OLD, need_mib=60), "lru")
    nobody = choose_victims(ask(OLD, need_mib=500), "lru")

    assert "frees 100 MiB where 60 MiB are needed" in victims.because
    assert "500 MiB more are needed" in nobody.because
    assert "is 100 MiB" in nobody.because


RESIDENTS = st.lists(
    st.builds(
        resident,
        st.sampled_from("abcdefgh"),
        mib=st.integers(0, 60),
        priority=st.sampled_from([50, 100, 150]),
        pinned=st.sampled_from([False, False, False, True]),
        busy=st.sampled_from([False, False, False, True]),
        idle_s=st.integers(0, 5).map(float),
    ),
    max_size=8,
    unique_by=lambda r: r.model,
)


@given(RESIDENTS, st.integers(0, 200), st.sampled_from([50, 100, 150]), st.sampled_from(["lru", "priority"]))
def test_victims_free_enough_and_none_is_superfluous(
    here: list[Resident], need_mib: int, priority: int, strategy: Strategy
) -> None:
    displaceable = [r for r in here if not r.pinned and r.priority <= priority]
    question = ask(*here, need_mib=need_mib, priority=priority)

    answer = choose_victims(question, strategy)

    if isinstance(answer, NoVictims):
        assert sum(r.bytes for r in displaceable if not r.busy) < question.need_bytes
        assert answer.busy == (sum(r.bytes for r in displaceable) >= question.need_bytes)
        return
    chosen = [r for r in here if r.model in answer.models]
    freed = sum(r.bytes for r in chosen)
    assert freed >= question.need_bytes
    assert all(freed - r.bytes < question.need_bytes for r in chosen)
    assert all(r in displaceable and not r.busy for r in chosen)


@given(st.data(), RESIDENTS, st.integers(0, 200))
def test_the_order_of_the_question_changes_nothing(
    data: st.DataObject, here: list[Resident], need_mib: int
) -> None:
    shuffled = data.draw(st.permutations(here))

    assert choose_victims(ask(*shuffled, need_mib=need_mib), "lru") == choose_victims(
        ask(*here, need_mib=need_mib), "lru"
    )
