"""Errors keep their kind across the bus, and a bug of ours shows no more than that it is one."""

import pytest

from cortex_proto import errors
from cortex_proto.errors import CortexError, Failed, from_wire, to_wire

CLASSES = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, CortexError) and kind is not CortexError
]


def test_there_are_errors_to_try() -> None:
    assert len(CLASSES) >= 13


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_comes_back_as_what_it_was(kind: type[CortexError]) -> None:
    failed = to_wire(kind("need 3 GiB, have 2 GiB"))

    back = from_wire(failed)

    assert type(back) is kind
    assert str(back) == "need 3 GiB, have 2 GiB"
    assert failed.retryable == kind.retryable


def test_no_two_errors_share_a_code() -> None:
    codes = [kind.code for kind in CLASSES]

    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_tree_at_the_top_of_the_module_is_true(kind: type[CortexError]) -> None:
    lines = [line.split() for line in (errors.__doc__ or "").splitlines()]

    (line,) = [words for words in lines if words and words[0] == kind.__name__]

    assert line[-2:] == [str(kind.http_status), "yes" if kind.retryable else "no"]


def test_a_bug_of_ours_tells_nothing_of_itself() -> None:
    assert to_wire(KeyError("secret")) == Failed("internal_error", "internal error", retryable=False)


def test_an_error_of_a_newer_release_is_an_error_still() -> None:
    error = from_wire(Failed("not_invented_yet", "who knows", retryable=True))

    assert type(error) is CortexError
    assert str(error) == "who knows"
