import msgspec
import pytest

from cortex_gateway.dialects.openai_error import http_error, plain
from cortex_proto.errors import (
    BadRequestError,
    BusyError,
    ContextLengthError,
    CortexError,
    EngineError,
    LoadFailedError,
    ModelUnknownError,
    NodeLostError,
    NoRoomError,
    PayloadTooLargeError,
    StreamBrokenError,
)


@pytest.mark.parametrize(
    ("error", "status", "detail", "retry_after"),
    [
        (BadRequestError("x", "seed"), 400, ("invalid_request_error", "seed", "invalid_request"), None),
        (
            ContextLengthError("x"),
            400,
            ("invalid_request_error", "messages", "context_length_exceeded"),
            None,
        ),
        (ModelUnknownError("x"), 404, ("invalid_request_error", "model", "model_not_found"), None),
        (PayloadTooLargeError("x"), 413, ("invalid_request_error", None, "payload_too_large"), None),
        (BusyError("x"), 429, ("rate_limit_error", None, "busy"), "2"),
        (NoRoomError("x"), 503, ("api_error", None, "no_room"), "5"),
        (LoadFailedError("x"), 503, ("api_error", None, "load_failed"), "2"),
        (NodeLostError("x"), 502, ("api_error", None, "node_lost"), None),
        (StreamBrokenError("x"), 502, ("api_error", None, "stream_broken"), None),
        (EngineError("x"), 500, ("api_error", None, "engine_error"), None),
    ],
)
def test_http_error(
    error: CortexError, status: int, detail: tuple[str, str | None, str], retry_after: str | None
) -> None:
    answer = http_error(error)

    assert answer.status == status
    said = answer.body.error
    assert (said.message, said.type, said.param, said.code) == ("x", *detail)
    assert answer.headers.get("retry-after") == retry_after
    assert answer.headers["x-should-retry"] == str(error.retryable).lower()


def test_a_bug_says_nothing_of_itself() -> None:
    answer = http_error(KeyError("secret"))

    assert answer.status == 500
    assert answer.body.error.message == "internal error"


def test_an_unknown_route_has_all_four_keys() -> None:
    body = msgspec.to_builtins(plain(404, "Not Found", "not_found").body)

    assert set(body["error"]) == {"message", "type", "param", "code"}
