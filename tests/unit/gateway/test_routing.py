import pytest

from cortex_gateway.routing import Choice, NoReplica, Replicas
from cortex_proto.fleet import LOAD_LIMIT_S, Draining, Loading, LoadRefused, Ready, ReplicaState, Unloaded
from cortex_proto.fleet import Replica as FleetReplica
from cortex_proto.ids import ModelId, NodeId

M = ModelId("m")
A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def ready(running: int = 0, waiting: int = 0) -> Ready:
    return Ready(running, waiting, max_waiting=8, idle_s=0, context=2048)


def table(**states: ReplicaState) -> Replicas:
    replicas = Replicas()
    for node, state in states.items():
        replicas.hear(FleetReplica(M, NodeId(node), state), now_s=100.0)
    return replicas


@pytest.mark.parametrize(
    ("replicas", "tried", "expected"),
    [
        (table(), (), NoReplica("waiting for a place")),
        (table(a=ready(2), b=ready(1)), (), Choice(B, "least busy of 2 ready, 1 requests on it")),
        (table(a=ready(0, 2), b=ready(1)), (), Choice(B, "least busy of 2 ready, 1 requests on it")),
        (table(b=ready(1), a=ready(1)), (), Choice(A, "least busy of 2 ready, 1 requests on it")),
        (table(a=ready(), b=ready(5)), (A,), Choice(B, "least busy of 1 ready, 5 requests on it")),
        (table(a=ready(), b=ready(5)), (A, B), Choice(A, "least busy of 2 ready, 0 requests on it")),
        (table(a=Draining(1), b=ready(5)), (), Choice(B, "least busy of 1 ready, 5 requests on it")),
        (table(a=Loading("weights", 0.45)), (), NoReplica("loading 45 % (weights)")),
        (table(a=Loading("w", 0.1), b=Loading("w", 0.9)), (), NoReplica("loading 90 % (w)")),
        (table(a=LoadRefused("5 > 3"), b=Draining(1)), (), NoReplica("a refused: 5 > 3")),
        (table(a=Draining(1)), (), NoReplica("waiting for a place")),
    ],
)
def test_choose(replicas: Replicas, tried: tuple[NodeId, ...], expected: Choice | NoReplica) -> None:
    assert replicas.choose(M, tried, now_s=101.0) == expected


def test_own_requests_that_no_report_shows_yet_count() -> None:
    replicas = table(a=ready(), b=ready())
    replicas.begin(M, A)

    choice = replicas.choose(M, (), now_s=100.0)

    assert choice == Choice(B, "least busy of 2 ready, 0 requests on it")


def test_a_request_that_has_ended_counts_no_more() -> None:
    replicas = table(a=ready(), b=ready())
    replicas.begin(M, A)
    replicas.end(M, A)

    choice = replicas.choose(M, (), now_s=100.0)

    assert isinstance(choice, Choice)
    assert choice.node == A


def test_a_replica_not_heard_of_for_too_long_is_no_candidate() -> None:
    replicas = table(a=ready())

    assert isinstance(replicas.choose(M, (), now_s=100.0 + LOAD_LIMIT_S), Choice)
    assert isinstance(replicas.choose(M, (), now_s=100.1 + LOAD_LIMIT_S), NoReplica)


def test_an_unloaded_replica_is_forgotten_at_once() -> None:
    replicas = table(a=ready())

    replicas.hear(FleetReplica(M, A, Unloaded()), now_s=100.0)

    assert replicas.known(M, 100.0) == ()


def test_a_dropped_replica_is_back_with_its_next_report() -> None:
    replicas = table(a=ready(), c=ready())
    replicas.drop(M, A)
    assert [r.node for r in replicas.known(M, 100.0)] == [C]

    replicas.hear(FleetReplica(M, A, ready()), now_s=100.0)

    assert [r.node for r in replicas.known(M, 100.0)] == [A, C]
