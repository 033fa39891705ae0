"""What every answer has: a request id, and an OpenAI body if it is an error."""

from collections.abc import Mapping

import msgspec
import structlog
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cortex_gateway.dialects.openai_error import HttpError, http_error, plain
from cortex_kit.ids import new_request
from cortex_proto.errors import CortexError
from cortex_proto.ids import RequestId

log = structlog.get_logger()


def request_id(request: Request) -> RequestId:
    """Return the id that `identified` gave the request."""
    result: RequestId = request.scope["state"]["request"]
    return result


def identified(app: ASGIApp) -> ASGIApp:
    """Give each request an id, say it in the answer, and log what was a bug of ours."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        request = new_request()
        scope.setdefault("state", {})["request"] = request

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request
            await send(message)

        try:
            await app(scope, receive, send_with_id)
        except Exception:
            log.exception("bug", request=request, path=scope.get("path"))

    return call


def add_error_answers(app: FastAPI) -> None:
    """Answer every error that a route or the router raises."""

    async def known(_request: Request, error: Exception) -> Response:
        return _response(http_error(error))

    async def routing(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        return _response(plain(error.status_code, error.detail, code), error.headers)

    async def gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(CortexError, known)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, known)


def _response(error: HttpError, headers: Mapping[str, str] | None = None) -> Response:
    body = msgspec.json.encode(error.body)
    return Response(
        body, error.status, headers={**error.headers, **(headers or {})}, media_type="application/json"
    )
