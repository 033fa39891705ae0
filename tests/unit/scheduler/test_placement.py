"""Where a model goes: the order of preference, the arithmetic per device, and the reasons."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.fleet import A, B, C, model, resident, site, tenant
from cortex_proto.catalogue import MIB, Model
from cortex_proto.errors import LoadFailedError, NoRoomError, UnavailableError
from cortex_proto.fleet import LoadRefused
from cortex_proto.ids import ModelId, NodeId
from cortex_scheduler.placement import (
    Decision,
    Displace,
    Place,
    Site,
    Tenant,
    Wait,
    dismiss,
    fit,
    place,
    question,
)

M = model("m")
NO_MEMORY = LoadRefused("needs 300 MiB, 200 free", need_bytes=300 * MIB, free_bytes=200 * MIB)
BAD_FILE = LoadRefused("the file is cut short")


@pytest.mark.parametrize(
    ("wanted", "sites", "expected"),
    [
        pytest.param(
            M,
            [site(A, free_mib=900, need_mib=300), site(B, free_mib=400, need_mib=300)],
            Place(B, (0,), "tightest of 2 nodes with room: needs 300 MiB of 400 MiB free on b"),
            id="the tightest fit",
        ),
        pytest.param(
            M,
            [site(B, need_mib=300), site(A, need_mib=300)],
            Place(A, (0,), "tightest of 2 nodes with room: needs 300 MiB of 1000 MiB free on a"),
            id="a tie goes to the smaller id",
        ),
        pytest.param(
            M,
            [site(A, free_mib=400), site(B, free_mib=900)],
            Place(B, (0,), "its size is unknown; most room of 2 nodes: 900 MiB free on b"),
            id="of unknown size: the freest",
        ),
        pytest.param(
            M,
            [site(A, free_mib=0)],
            Place(A, (0,), "its size is unknown; most room of 1 nodes: 0 MiB free on a"),
            id="of unknown size: even a full node is asked",
        ),
        pytest.param(
            M,
            [site(A, free_mib=[300, 500], need_mib=200)],
            Place(A, (1,), "tightest of 1 nodes with room: needs 200 MiB of 500 MiB free on a"),
            id="the freest device of a node",
        ),
        pytest.param(
            model(devices=2),
            [site(A, free_mib=[300, 100, 250], need_mib=400)],
            Place(A, (0, 2), "tightest of 1 nodes with room: needs 400 MiB of 550 MiB free on a"),
            id="each device needs room for its part",
        ),
        pytest.param(
            model(pinned_on=("b",)),
            [site(A, free_mib=300, need_mib=200), site(B, free_mib=900, need_mib=200)],
            Place(B, (0,), "tightest of 1 nodes with room: needs 200 MiB of 900 MiB free on b"),
            id="pinned models go where they are pinned",
        ),
        pytest.param(
            M,
            [site(A, free_mib=300, need_mib=200, refused=BAD_FILE), site(B, free_mib=900, need_mib=200)],
            Place(B, (0,), "tightest of 1 nodes with room: needs 200 MiB of 900 MiB free on b"),
            id="a node that refused is passed over",
        ),
        pytest.param(
            M,
            [site(A, free_mib=100, total_mib=1000, need_mib=500, guessed=True)],
            Place(A, (0,), "its size is unknown; most room of 1 nodes: 100 MiB free on a"),
            id="a guess forbids nothing",
        ),
        pytest.param(
            M,
            [site(A, need_mib=300, refused=NO_MEMORY)],
            Wait(
                "refused for want of memory a moment ago, to be tried again: a: needs 300 MiB, 200 free",
            ),
            id="want of memory passes",
        ),
    ],
)
def test_where_a_model_goes(wanted: Model, sites: list[Site], expected: Decision) -> None:
    assert place(wanted, sites) == expected


COLD = tenant(resident("cold", mib=400, idle_s=90))
BUSY = tenant(resident("busy", mib=400, busy=True))
PINNED = tenant(resident("pinned", mib=400, pinned=True))
HIGHER = tenant(resident("higher", mib=400, priority=200))


@pytest.mark.parametrize(
    ("sites", "order"),
    [
        pytest.param(
            [site(A, COLD, free_mib=0, need_mib=200), site(B, COLD, free_mib=150, need_mib=200)],
            [B, A],
            id="where the fewest bytes must leave",
        ),
        pytest.param(
            [site(A, BUSY, free_mib=150, need_mib=200), site(B, COLD, free_mib=0, need_mib=200)],
            [B, A],
            id="where nobody is busy",
        ),
        pytest.param(
            [
                site(A, PINNED, free_mib=0, need_mib=200),
                site(B, HIGHER, free_mib=0, need_mib=200),
                site(C, COLD, free_mib=0, need_mib=200),
            ],
            [C],
            id="never at the cost of a pinned or higher one",
        ),
        pytest.param(
            [site(A, need_mib=200, refused=BAD_FILE), site(B, COLD, free_mib=0, need_mib=200)],
            [B],
            id="rather than where it failed",
        ),
    ],
)
def test_where_room_is_made_first(sites: list[Site], order: list[NodeId]) -> None:
    decision = place(M, sites)

    assert isinstance(decision, Displace)
    assert [s.node for s in decision.sites] == order


@pytest.mark.parametrize(
    ("wanted", "sites", "error", "words"),
    [
        pytest.param(M, [], UnavailableError, "no node is alive", id="no node"),
        pytest.param(
            M,
            [site(A, need_mib=200, refused=BAD_FILE)],
            LoadFailedError,
            "a: the file is cut short",
            id="failed",
        ),
        pytest.param(
            M,
            [site(A, need_mib=200, refused=BAD_FILE), site(B, PINNED, free_mib=0, need_mib=200)],
            LoadFailedError,
            "a: the file is cut short",
            id="failed, and no other node has room",
        ),
        pytest.param(
            M,
            [site(A, COLD, PINNED, free_mib=100, need_mib=600)],
            NoRoomError,
            "a: it needs 600 MiB on 1 of 1 devices; 100 MiB are free, 400 MiB may be evicted, "
            "the rest is pinned or of a higher class",
            id="too little may be evicted",
        ),
        pytest.param(
            model(pinned_on=("z",)), [site(A)], NoRoomError, "a: it is pinned to z", id="pinned elsewhere"
        ),
        pytest.param(
            model(devices=2, device_mib=2000),
            [site(A, free_mib=[1000, 1000])],
            NoRoomError,
            "a: it needs 2 devices of 2000 MiB or more, and has 0",
            id="devices too small",
        ),
        pytest.param(
            M,
            [site(A, free_mib=1000, total_mib=1000, need_mib=2000)],
            NoRoomError,
            "a: it needs 1 devices of 2000 MiB or more, and has 0",
            id="bigger than any device",
        ),
    ],
)
def test_why_a_model_cannot_be_placed(
    wanted: Model, sites: list[Site], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        place(wanted, sites)

    assert str(caught.value) == words


def test_the_evictor_is_asked_about_the_device_that_lacks_most() -> None:
    spread = tenant(resident("spread", mib=400), devices=(0, 1))
    crowded = site(A, COLD, spread, free_mib=[0, 100, 0], need_mib=400)

    ask = question(model(devices=2, priority=150), crowded)

    assert (ask.node, ask.need_bytes, ask.priority) == (A, 200 * MIB, 150)
    assert [(r.model, r.bytes // MIB) for r in ask.residents] == [("cold", 400), ("spread", 200)]


def test_room_is_made_where_nobody_is_busy() -> None:
    idle = tenant(resident("idle", mib=300), devices=(1,))
    two_devices = site(A, BUSY, idle, free_mib=[0, 0], need_mib=200)

    assert [r.model for r in question(M, two_devices).residents] == ["idle"]


def test_a_share_is_rounded_up() -> None:
    odd = replace(site(A, free_mib=[50, 50]), need_bytes=100 * MIB + 1)

    assert fit(model(devices=2), odd) is None


def test_room_for_many_devices_is_made_one_device_at_a_time() -> None:
    wanted = model(devices=2)
    first = tenant(resident("first", mib=300), devices=(0,))
    second = tenant(resident("second", mib=300), devices=(1,))
    crowded = site(A, first, second, free_mib=[0, 0], need_mib=400)

    cleared = dismiss(wanted, crowded, [question(wanted, crowded).residents[0].model])

    assert fit(wanted, cleared) is None
    assert [r.model for r in question(wanted, cleared).residents] == ["second"]
    assert fit(wanted, dismiss(wanted, cleared, [ModelId("second")])) == (0, 1)


@pytest.mark.parametrize("who", [BUSY, PINNED, HIGHER], ids=["busy", "pinned", "of a higher class"])
def test_who_must_stay_stays_whatever_the_evictor_says(who: Tenant) -> None:
    here = site(A, who, free_mib=0, need_mib=200)

    assert dismiss(M, here, [who.resident.model]) == here


@st.composite
def _sites(draw: st.DrawFn) -> Site:
    free_mib = draw(st.lists(st.integers(-50, 100), min_size=1, max_size=3))
    tenants = draw(
        st.lists(
            st.builds(
                lambda r, d: tenant(r, devices=(d,)),
                st.builds(
                    resident,
                    st.sampled_from("uvwxyz"),
                    mib=st.integers(1, 60),
                    priority=st.sampled_from([50, 100, 150]),
                    pinned=st.sampled_from([False, False, True]),
                    busy=st.sampled_from([False, False, True]),
                ),
                st.integers(0, len(free_mib) - 1),
            ),
            max_size=4,
            unique_by=lambda t: t.resident.model,
        )
    )
    node = draw(st.sampled_from([A, B, C]))
    refused = draw(st.sampled_from([None, None, NO_MEMORY, BAD_FILE]))
    guessed = draw(st.booleans())
    return site(node, *tenants, free_mib=free_mib, total_mib=150, guessed=guessed, refused=refused)


WORLDS = st.tuples(
    st.lists(_sites(), max_size=3, unique_by=lambda s: s.node),
    st.integers(1, 150),
    st.integers(1, 2),
)


def _world(sites: list[Site], need_mib: int) -> list[Site]:
    return [Site(s.node, s.rooms, s.tenants, need_mib * MIB, s.guessed, s.refused) for s in sites]


def _outcome(wanted: Model, sites: list[Site]) -> object:
    try:
        return place(wanted, sites)
    except UnavailableError as error:
        return type(error), str(error)


@given(st.data(), WORLDS)
def test_the_same_fleet_always_gives_the_same_answer(
    data: st.DataObject, world: tuple[list[Site], int, int]
) -> None:
    sites, need_mib, devices = _world(world[0], world[1]), world[1], world[2]
    shuffled = data.draw(st.permutations(sites))

    assert need_mib
    assert _outcome(model(devices=devices), shuffled) == _outcome(model(devices=devices), sites)


@given(WORLDS)
def test_no_device_is_ever_overcommitted(world: tuple[list[Site], int, int]) -> None:
    sites, devices = _world(world[0], world[1]), world[2]
    wanted = model(devices=devices)

    decision = _outcome(wanted, sites)

    for here in decision.sites if isinstance(decision, Displace) else []:
        _clear_all_that_may_leave(wanted, here)
    if isinstance(decision, Place) and "unknown" not in decision.because:
        here = next(s for s in sites if s.node == decision.node)
        assert len(set(decision.devices)) == devices
        free = {r.device: r.free_bytes for r in here.rooms}
        assert all(free[d] * devices >= here.need_bytes for d in decision.devices)
        assert not here.refused


def _clear_all_that_may_leave(wanted: Model, here: Site) -> None:
    """Play an evictor that names everybody: it ends in a fit, or where only busy ones are left."""
    while fit(wanted, here) is None:
        ask = question(wanted, here)
        assert ask.need_bytes > 0
        cleared = dismiss(wanted, here, [r.model for r in ask.residents])
        if cleared == here:
            assert any(r.busy for r in ask.residents)
            return
        gone = [t.resident for t in here.tenants if t not in cleared.tenants]
        assert all(not r.pinned and not r.busy and r.priority <= wanted.priority for r in gone)
        here = cleared
