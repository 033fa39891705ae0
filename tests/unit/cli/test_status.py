"""What `cortex status` says of a fleet."""

import pytest

from builders.fleet import A, B, model, node, ready, replica
from cortex_cli.status import describe, device_rows, model_rows
from cortex_proto.fleet import Draining, Loading, LoadRefused, ReplicaState, Unloaded
from cortex_proto.placement import FleetStatus, ModelStatus


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (Loading("weights", 0.42), "loading: weights 42%"),
        (ready(running=3, waiting=1), "ready, 3 running, 1 waiting"),
        (Draining(2), "draining, 2 running"),
        (LoadRefused("needs 9 MiB, 4 are free", 9, 4), "refused: needs 9 MiB, 4 are free"),
        (Unloaded(), "unloaded"),
    ],
)
def test_each_state_is_said_in_words(state: ReplicaState, words: str) -> None:
    assert describe(state) == words


def test_used_and_free_memory_add_up_to_the_total() -> None:
    fleet = FleetStatus(7, (node(A, free_mib=300, total_mib=1000),), ())

    assert list(device_rows(fleet)) == [("a", "0 test", "cpu", "700 MiB", "300 MiB", "1,000 MiB")]


def test_a_model_is_listed_where_it_is_where_it_shall_be_and_if_it_is_nowhere() -> None:
    fleet = FleetStatus(
        7,
        (node(A, replica("m", A, ready(), mib=200)), node(B)),
        (ModelStatus(model("m"), (A, B), "two nodes have room"), ModelStatus(model("n"), (), "nobody asked")),
    )

    assert list(model_rows(fleet)) == [
        ("m", "a", "ready, 0 running, 0 waiting", "200 MiB", "two nodes have room"),
        ("m", "b", "assigned", "", "two nodes have room"),
        ("n", "", "not loaded", "", "nobody asked"),
    ]
