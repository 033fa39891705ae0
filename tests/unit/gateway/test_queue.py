import pytest

from cortex_gateway.queue import Waiting
from cortex_proto.errors import BusyError
from cortex_proto.ids import ModelId

M, OTHER = ModelId("m"), ModelId("other")


def test_as_many_as_may_wait_are_let_in_and_one_more_is_told_the_numbers() -> None:
    waiting = Waiting(2)
    waiting.join(M)
    waiting.join(M)

    with pytest.raises(BusyError, match="2 requests already wait for model 'm', 2 may; try again in"):
        waiting.join(M)


def test_who_leaves_makes_room_for_another() -> None:
    waiting = Waiting(1)
    waiting.join(M)
    waiting.leave(M)

    waiting.join(M)

    assert waiting.count(M) == 1


def test_a_full_queue_is_full_for_its_model_only() -> None:
    waiting = Waiting(1)
    waiting.join(M)

    waiting.join(OTHER)

    assert waiting.count(OTHER) == 1
