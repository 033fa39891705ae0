"""The guards that are plain functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_kit.guards import Pace, check_size
from cortex_kit.ids import new_instance, new_request
from cortex_proto.errors import PayloadTooLargeError

MAX_PAYLOAD = 8192


@given(attempt=st.integers(min_value=0, max_value=10_000))
def test_a_retry_waits_longer_each_time_within_its_bounds(attempt: int) -> None:
    pace = Pace()

    assert 0.05 <= pace.retry_s(attempt) <= pace.last_retry_s
    assert pace.retry_s(attempt) <= 0.1 * 2 ** min(attempt, 16)


def test_two_that_retry_at_once_do_not_keep_step() -> None:
    assert len({Pace().retry_s(3) for _ in range(20)}) > 1


@pytest.mark.parametrize("headers", [None, {}, {"a": "b"}])
def test_a_message_may_fill_all_but_the_headroom(headers: dict[str, str] | None) -> None:
    room = MAX_PAYLOAD - 4096 - (len("a: b\r\n") if headers else 0)

    check_size("subject", b"x" * room, headers, MAX_PAYLOAD)

    with pytest.raises(PayloadTooLargeError, match=r"4097 bytes is over the 4096"):
        check_size("subject", b"x" * (room + 1), headers, MAX_PAYLOAD)


def test_every_run_of_a_service_and_every_request_has_a_name_of_its_own() -> None:
    assert len({new_instance("gateway") for _ in range(100)}) == 100
    assert new_instance("gateway").startswith("gateway-")
    assert len(new_request()) == 32
    assert new_request() != new_request()
