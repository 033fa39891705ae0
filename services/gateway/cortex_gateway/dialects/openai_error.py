"""The OpenAI error body, for every error on every path."""

from dataclasses import dataclass

import msgspec

from cortex_proto.errors import BadRequestError, BusyError, CortexError, NoRoomError


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong; clients need all four keys."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is an error, and the last event of a broken stream."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class HttpError:
    """One error as HTTP."""

    status: int
    body: ErrorBody
    headers: dict[str, str]


_PARAMS = {"model_not_found": "model", "context_length_exceeded": "messages"}
_NO_ROOM_RETRY_S = 5
_RETRY_S = 2


def http_error(error: BaseException) -> HttpError:
    """Translate an error; a bug of ours shows no more than that it is one."""
    if not isinstance(error, CortexError):
        return plain(500, "internal error", CortexError.code)
    param = error.param if isinstance(error, BadRequestError) else None
    detail = ErrorDetail(str(error), _type(error.http_status), param or _PARAMS.get(error.code), error.code)
    headers = {"x-should-retry": "true" if error.retryable else "false"}
    if error.http_status in (429, 503):
        headers["retry-after"] = str(_NO_ROOM_RETRY_S if isinstance(error, NoRoomError) else _RETRY_S)
    return HttpError(error.http_status, ErrorBody(detail), headers)


def plain(status: int, message: str, code: str) -> HttpError:
    """Say what HTTP itself has to object: no such route, no such method."""
    return HttpError(status, ErrorBody(ErrorDetail(message, _type(status), None, code)), {})


def _type(status: int) -> str:
    if status == BusyError.http_status:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "api_error"
