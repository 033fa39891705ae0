"""What the scheduler makes of what nodes say: who lives, what is free, who is busy, how big a model is."""

import pytest

from builders.fleet import A, B, catalogue, desired, model, node, ready, replica
from cortex_proto.catalogue import MIB, Model
from cortex_proto.fleet import NODE_LIMIT_S, Draining, Loading, LoadRefused, Node, ReplicaState, Unloaded
from cortex_proto.ids import ModelId
from cortex_proto.placement import Desired, Resident
from cortex_scheduler.fleet import REPEAT_LIMIT_S, Fleet
from cortex_scheduler.placement import Site

X, Y = model("x"), model("y")
NEW = model("new", mib=100)
NO_MEMORY = LoadRefused("needs 300 MiB", need_bytes=300 * MIB)
BAD_FILE = LoadRefused("the file is cut short")


def fleet(*nodes: Node, models: tuple[Model, ...] = (X, Y, NEW)) -> Fleet:
    it = Fleet(catalogue(*models), min_residence_s=2.0, load_retry_s=15.0)
    for n in nodes:
        it.hear_node(n, now_s=0.0)
    return it


def only_site(it: Fleet, wanted: Model, *documents: Desired, now_s: float = 0.0) -> Site:
    (site,) = it.sites(wanted, {d.node: d for d in documents}, now_s)
    return site


def tenant_of(it: Fleet, *, now_s: float) -> Resident:
    (tenant,) = only_site(it, NEW, desired(A, X), now_s=now_s).tenants
    return tenant.resident


def test_a_silent_node_is_dead_after_its_limit() -> None:
    it = fleet(node(A), node(B))
    it.hear_node(node(B), now_s=10.0)

    assert [n.id for n in it.nodes(NODE_LIMIT_S)] == [B]
    assert it.bury(NODE_LIMIT_S) == [A]
    assert it.bury(NODE_LIMIT_S) == []


def test_a_node_that_says_goodbye_is_gone_at_once() -> None:
    it = fleet(node(A))

    it.lose_node(A)

    assert not it.is_alive(A, 0.0)
    assert it.nodes(0.0) == ()


def test_a_load_report_is_a_sign_of_life() -> None:
    it = fleet(node(A, replica("x", A)))

    it.hear_replica(replica("x", A), now_s=10.0)

    assert it.is_alive(A, 10.0 + NODE_LIMIT_S - 1)


def test_a_load_report_of_a_node_that_left_does_not_revive_it() -> None:
    it = fleet(node(A, replica("x", A)))
    it.lose_node(A)

    it.hear_replica(replica("x", A), now_s=1.0)

    assert not it.is_alive(A, 1.0)


def test_a_node_that_is_expected_has_time_to_speak() -> None:
    it = fleet()

    it.expect([A], now_s=100.0)

    assert it.is_alive(A, 100.0 + NODE_LIMIT_S - 1)
    assert not it.is_alive(A, 100.0 + NODE_LIMIT_S)
    assert it.nodes(100.0) == ()


def test_while_we_are_cut_off_no_node_dies() -> None:
    it = fleet(node(A))

    it.expect_all(now_s=14.0)

    assert it.bury(28.0) == []


def test_the_newest_word_on_a_replica_counts_and_its_shares_stay() -> None:
    it = fleet(node(A, replica("x", A, Loading("weights", 0.5), mib=300)))

    it.hear_replica(replica("x", A, ready(idle_s=0)), now_s=1.0)
    (seen,) = it.nodes(1.0)[0].replicas

    assert seen.state == ready(idle_s=0)
    assert seen.bytes == 300 * MIB


@pytest.mark.parametrize(
    ("here", "document", "free_mib"),
    [
        pytest.param(node(A, free_mib=700), desired(A), 700, id="nothing there"),
        pytest.param(
            node(A, replica("x", A, mib=300), free_mib=700),
            desired(A, X),
            700,
            id="a resident is counted once",
        ),
        pytest.param(
            node(A, replica("x", A, Draining(1), mib=300), free_mib=700),
            desired(A),
            1000,
            id="one that leaves",
        ),
        pytest.param(
            node(A, replica("x", A, mib=300), free_mib=700), desired(A), 1000, id="one that is to leave soon"
        ),
        pytest.param(node(A, free_mib=700), desired(A, model("p", mib=200)), 500, id="one that is to come"),
        pytest.param(
            node(A, replica("p", A, Loading("weights", 0), mib=200), free_mib=500),
            desired(A, model("p", mib=200)),
            500,
            id="one that is coming is counted once",
        ),
        pytest.param(
            node(A, replica("x", A, mib=300), free_mib=0),
            desired(A, model("p", mib=300)),
            0,
            id="one comes where another leaves",
        ),
    ],
)
def test_what_is_free(here: Node, document: Desired, free_mib: int) -> None:
    site = only_site(fleet(here), NEW, document)

    assert site.rooms[0].free_bytes == free_mib * MIB


def test_promises_are_spread_over_their_devices() -> None:
    it = fleet(node(A, free_mib=[500, 500, 500]))

    site = only_site(it, NEW, desired(A, model("p", mib=200), devices=(0, 2)))

    assert [r.free_bytes // MIB for r in site.rooms] == [400, 500, 400]


@pytest.mark.parametrize(
    ("state", "busy"),
    [
        (ready(idle_s=50), False),
        (ready(running=1, idle_s=0), True),
        (ready(waiting=1, idle_s=0), True),
        (Loading("weights", 0.5), True),
        (Draining(1), True),
    ],
)
def test_who_is_busy(state: ReplicaState, *, busy: bool) -> None:
    it = fleet(node(A, replica("x", A, state, mib=300)))

    assert tenant_of(it, now_s=0.0).busy == busy


def test_a_model_that_just_became_ready_waits_for_its_first_request() -> None:
    it = fleet(node(A, replica("x", A, Loading("weights", 0.9), mib=300)))
    it.hear_replica(replica("x", A, ready(idle_s=0)), now_s=10.0)

    assert tenant_of(it, now_s=11.9).busy
    assert not tenant_of(it, now_s=12.0).busy


@pytest.mark.parametrize(
    "reports",
    [
        pytest.param([(10.5, ready(running=1, idle_s=0)), (11.0, ready(idle_s=0.1))], id="seen running"),
        pytest.param([(11.0, ready(idle_s=0.1))], id="idle for less than it has been ready"),
    ],
)
def test_once_it_has_served_it_may_go(reports: list[tuple[float, ReplicaState]]) -> None:
    it = fleet(node(A))
    it.hear_node(node(A, replica("x", A, ready(idle_s=0), mib=300)), now_s=10.0)

    for now_s, state in reports:
        it.hear_replica(replica("x", A, state), now_s)

    assert not tenant_of(it, now_s=11.0).busy


def test_idle_time_goes_on_between_reports() -> None:
    it = fleet(node(A, replica("x", A, ready(idle_s=50), mib=300)))

    assert tenant_of(it, now_s=3.0).idle_s == 53.0


def test_a_model_is_pinned_only_where_it_is_pinned() -> None:
    pinned = model("x", pinned_on=("b",))
    it = fleet(node(A), node(B))
    documents = {A: desired(A, pinned), B: desired(B, pinned)}

    sites = it.sites(NEW, documents, 0.0)

    assert [s.tenants[0].resident.pinned for s in sites] == [False, True]


def test_size_is_what_the_catalogue_declares() -> None:
    it = fleet(node(A, replica("new", A, mib=250)), node(B))

    sizes = [(s.need_bytes // MIB, s.guessed) for s in it.sites(NEW, {}, 0.0)]

    assert sizes == [(100, False), (100, False)]


def test_size_is_guessed_from_what_the_model_once_took() -> None:
    it = fleet(node(A, replica("x", A, mib=300)), node(B, replica("x", B, mib=200)))
    it.hear_node(node(A), now_s=1.0)

    sizes = [(s.need_bytes // MIB, s.guessed) for s in it.sites(X, {}, 1.0)]

    assert sizes == [(300, True), (200, True)]


def test_size_on_an_unknown_node_is_the_least_known_elsewhere() -> None:
    it = fleet(node(A, replica("x", A, mib=300)), node(B))

    assert [(s.need_bytes // MIB, s.guessed) for s in it.sites(X, {}, 0.0)] == [(300, True), (300, True)]


def test_a_refusal_teaches_the_size_and_the_node_may_be_asked_again_at_once() -> None:
    it = fleet(node(A))

    it.hear_replica(replica("x", A, NO_MEMORY), now_s=1.0)
    site = only_site(it, X, now_s=1.0)

    assert (site.need_bytes, site.guessed, site.refused) == (300 * MIB, False, None)


@pytest.mark.parametrize(
    ("wanted", "state"),
    [
        pytest.param(X, BAD_FILE, id="a bad file"),
        pytest.param(model("x", mib=300), NO_MEMORY, id="a need known before"),
    ],
)
def test_a_refusal_that_will_be_repeated_blocks_the_node_for_a_while(
    wanted: Model, state: LoadRefused
) -> None:
    it = fleet(node(A), models=(wanted,))

    it.hear_replica(replica("x", A, state), now_s=1.0)
    it.hear_node(node(A), now_s=10.0)

    assert only_site(it, wanted, now_s=15.9).refused == state
    assert only_site(it, wanted, now_s=16.0).refused is None


def test_a_refused_assignment_is_to_be_taken_back_until_it_is_tried_again() -> None:
    it = fleet(node(A))
    it.note_assigned(A, X.id, now_s=0.0)

    it.hear_replica(replica("x", A, BAD_FILE), now_s=1.0)

    assert it.refused(desired(A, X)) == {X.id: BAD_FILE}
    it.note_assigned(A, X.id, now_s=20.0)
    assert it.refused(desired(A, X)) == {}


def test_the_echo_of_an_old_refusal_does_not_undo_a_new_assignment() -> None:
    it = fleet(node(A))
    it.hear_replica(replica("x", A, BAD_FILE), now_s=1.0)
    it.note_assigned(A, X.id, now_s=20.0)

    it.hear_replica(replica("x", A, BAD_FILE), now_s=20.1)

    assert it.refused(desired(A, X)) == {}


@pytest.mark.parametrize(
    "again",
    [
        pytest.param([(20.5, Loading("weights", 0.1)), (21.0, BAD_FILE)], id="after a second try"),
        pytest.param([(20.1, BAD_FILE), (20.0 + REPEAT_LIMIT_S, BAD_FILE)], id="after too long for an echo"),
        pytest.param([(20.1, LoadRefused("something else"))], id="in other words"),
    ],
)
def test_a_second_refusal_counts(again: list[tuple[float, ReplicaState]]) -> None:
    it = fleet(node(A))
    it.hear_replica(replica("x", A, BAD_FILE), now_s=1.0)
    it.note_assigned(A, X.id, now_s=20.0)

    for now_s, state in again:
        it.hear_replica(replica("x", A, state), now_s)

    assert list(it.refused(desired(A, X))) == [X.id]


def test_a_repeated_refusal_does_not_prolong_the_block() -> None:
    it = fleet(node(A))
    it.hear_replica(replica("x", A, BAD_FILE), now_s=1.0)

    for now_s in (5.0, 10.0, 15.0):
        it.hear_replica(replica("x", A, BAD_FILE), now_s)

    assert only_site(it, X, now_s=16.0).refused is None


def test_what_is_found_on_a_node_is_adopted_if_the_catalogue_has_it() -> None:
    found = (
        replica("x", A, mib=[0, 300]),
        replica("y", A, Loading("weights", 0.5), mib=100),
        replica("stranger", A, mib=100),
        replica("new", A, Draining(1), mib=100),
    )
    it = fleet(node(A, *found, free_mib=[500, 500]))

    assert [(a.model.id, a.devices) for a in it.adopted(A)] == [(ModelId("x"), (1,)), (ModelId("y"), (0,))]


def test_a_model_that_has_left_is_forgotten_with_the_next_word_of_its_node() -> None:
    it = fleet(node(A, replica("x", A, mib=300)))
    it.hear_replica(replica("x", A, Unloaded()), now_s=1.0)

    it.hear_node(node(A), now_s=2.0)

    assert it.state(A, X.id) is None
    assert it.nodes(2.0)[0].replicas == ()
