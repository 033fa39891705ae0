"""Names become subject tokens and node ids without ever meeting by accident."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_proto.errors import BadRequestError
from cortex_proto.ids import NodeId, RequestId, node_id, stream_id, token, untoken

SUBJECT_TOKEN = re.compile(r"[^\s.*>]+")
KV_KEY = re.compile(r"[-/_=.a-zA-Z0-9]+")

plain = st.characters(codec="utf-8", min_codepoint=0x20, exclude_characters="\x7f")
names = st.text(plain, min_size=1, max_size=150).filter(lambda name: len(name.encode()) <= 512)


@given(names)
def test_a_token_is_legal_in_subjects_and_as_a_kv_key(name: str) -> None:
    text = token(name)

    assert SUBJECT_TOKEN.fullmatch(text)
    assert KV_KEY.fullmatch(text)
    assert "." not in text
    assert len(text) <= 96


@given(names)
def test_a_token_reads_back_unless_it_was_shortened(name: str) -> None:
    text = token(name)

    back = untoken(text)

    assert back == (None if "=Z" in text else name)


@given(names, names)
def test_two_names_never_share_a_token(one: str, other: str) -> None:
    assert (token(one) == token(other)) == (one == other)


def test_long_names_that_begin_alike_stay_apart() -> None:
    stem = "organisation/" + "x" * 200

    tokens = {token(stem + end) for end in ("a", "b", "A")}

    assert len(tokens) == 3
    assert all(re.fullmatch(r".{64}=Z[0-9a-f]{20}", text) for text in tokens)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama=2FLlama-3=2E1-8B"),
        ("A-B", "A-B"),
        ("a-b", "a-b"),
        ("a=2Fb", "a=3D2Fb"),
        ("two words", "two=20words"),
        ("*", "=2A"),
    ],
)
def test_a_token_stays_readable(name: str, expected: str) -> None:
    assert token(name) == expected


@pytest.mark.parametrize("name", ["", "x" * 513, "a\nb", "a\x7f", "\ud800"])
def test_a_name_that_cannot_be_a_model_is_refused(name: str) -> None:
    with pytest.raises(BadRequestError, match="1 to 512 bytes"):
        token(name)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("Atlas", "atlas"),
        ("gpu-1.lab.example", "gpu-1-lab-example"),
        ("_spare_", "_spare_"),
        ("h" * 80, "h" * 64),
    ],
)
def test_a_host_name_becomes_a_node_id(host: str, expected: str) -> None:
    assert node_id(host) == NodeId(expected)


@pytest.mark.parametrize("host", ["", "...", "any", "0", "ANY"])
def test_a_host_name_that_means_something_else_in_a_subject_is_refused(host: str) -> None:
    with pytest.raises(BadRequestError):
        node_id(host)


def test_each_attempt_at_a_request_is_a_stream_of_its_own() -> None:
    request = RequestId("9f2c")

    assert [stream_id(request, attempt) for attempt in range(2)] == ["9f2c-0", "9f2c-1"]
