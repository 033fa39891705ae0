"""Every error a caller of cortex can see.

CortexError                                                      HTTP  retry
  BadRequestError         the caller must change the request       400   no
    ContextLengthError    the prompt alone exceeds the context     400   no
  NotFoundError           no such thing                            404   no
    ModelUnknownError     no such model in the catalogue           404   no
  PayloadTooLargeError    a body or message over its limit         413   no
  BusyError               full now, try again later                429   yes
  UnavailableError        cannot be served at present              503   yes
    NoRoomError           the model fits nowhere as things are     503   yes
    LoadFailedError       the model was tried and did not load     503   yes
    BusError              the bus did not carry a message          503   yes
  NodeLostError           the node died during the request         502   yes
  StreamBrokenError       a piece of an answer went missing        502   yes
  EngineError             the engine failed on this request        500   no
"""

from typing import ClassVar

from cortex_proto.wire import Message


class Failed(Message, frozen=True):
    """An error on the wire, and the last delta of a stream that did not end well."""

    code: str
    message: str
    retryable: bool


class CortexError(Exception):
    """Base of all errors that cross a service boundary; anything else is a bug of ours."""

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False


class BadRequestError(CortexError):
    """The caller must change the request; `param` names the field, if one is at fault."""

    code = "invalid_request"
    http_status = 400

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(BadRequestError):
    """The prompt alone exceeds the context of the model."""

    code = "context_length_exceeded"


class NotFoundError(CortexError):
    """There is no such thing."""

    code = "not_found"
    http_status = 404


class ModelUnknownError(NotFoundError):
    """No model of this name is in the catalogue."""

    code = "model_not_found"


class PayloadTooLargeError(CortexError):
    """A body or message is over its limit; the text says both numbers."""

    code = "payload_too_large"
    http_status = 413


class BusyError(CortexError):
    """Everything that could serve this is full; try again later."""

    code = "busy"
    http_status = 429
    retryable = True


class UnavailableError(CortexError):
    """This cannot be served at present, for a reason that may pass."""

    code = "unavailable"
    http_status = 503
    retryable = True


class NoRoomError(UnavailableError):
    """The model fits nowhere as things are."""

    code = "no_room"


class LoadFailedError(UnavailableError):
    """The model was tried and did not load."""

    code = "load_failed"


class BusError(UnavailableError):
    """The bus did not carry a message: nobody answers, or the link is down."""

    code = "bus_error"


class NodeLostError(CortexError):
    """The node died, or was cut off, during the request."""

    code = "node_lost"
    http_status = 502
    retryable = True


class StreamBrokenError(CortexError):
    """A piece of an answer went missing or came out of order on its way."""

    code = "stream_broken"
    http_status = 502
    retryable = True


class EngineError(CortexError):
    """The engine failed on this request."""

    code = "engine_error"


_BY_CODE: dict[str, type[CortexError]] = {
    e.code: e
    for e in (
        BadRequestError,
        ContextLengthError,
        NotFoundError,
        ModelUnknownError,
        PayloadTooLargeError,
        BusyError,
        UnavailableError,
        NoRoomError,
        LoadFailedError,
        BusError,
        NodeLostError,
        StreamBrokenError,
        EngineError,
    )
}


def to_wire(error: BaseException) -> Failed:
    """Write `error` as a message; a bug of ours shows no more than that it is one."""
    if isinstance(error, CortexError):
        return Failed(error.code, str(error), error.retryable)
    return Failed(CortexError.code, "internal error", retryable=False)


def from_wire(failed: Failed) -> CortexError:
    """Read back what another service wrote."""
    return _BY_CODE.get(failed.code, CortexError)(failed.message)
