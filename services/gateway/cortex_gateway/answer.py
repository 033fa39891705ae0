"""Answers a chat request on the bare ASGI channel: as a stream of events, or whole."""

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

import msgspec
import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cortex_gateway import sse
from cortex_gateway.body import unless_gone
from cortex_gateway.dialects.openai_answer import Chunk, ChunkStream, whole
from cortex_gateway.dialects.openai_error import http_error
from cortex_gateway.generate import Note
from cortex_proto.errors import CortexError
from cortex_proto.generation import Delta

log = structlog.get_logger()

EARLY_S = 0.5
"""A stream that is silent so far is not begun before, so that an early error has a status of its own."""
_EVENTS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}

Deltas = Callable[[], AsyncGenerator[Delta | Note, None]]


class ChatAnswer(Response):
    """Generates while it answers; a client that leaves ends the generation.

    Inheritance, because FastAPI lets only a Response write to the channel itself.
    """

    def __init__(
        self, deltas: Deltas, chunks: ChunkStream, headers: Mapping[str, str], *, stream: bool
    ) -> None:
        super().__init__()
        self._deltas = deltas
        self._chunks = chunks
        self._extra = dict(headers)
        self._write = self._stream if stream else self._whole

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        await unless_gone(receive, self._write(scope, receive, send))

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        chunks: list[Chunk] = []
        async with aclosing(self._deltas()) as items:
            async for item in items:
                if not isinstance(item, Note):
                    chunks.extend(self._chunks.feed(item))
        body = msgspec.json.encode(whole(chunks))
        await Response(body, headers=self._extra, media_type="application/json")(scope, receive, send)

    async def _stream(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        out = _Events(send, self._extra)
        try:
            async with aclosing(self._deltas()) as items:
                async for item in items:
                    await self._pass_on(item, out)
            await out.write(sse.DONE)
        except Exception as error:
            if not out.begun:
                raise
            if not isinstance(error, CortexError):
                log.exception("bug")
            await out.write(sse.frame(msgspec.json.encode(http_error(error).body)))
        await out.end()

    async def _pass_on(self, item: Delta | Note, out: "_Events") -> None:
        if not isinstance(item, Note):
            for chunk in self._chunks.feed(item):
                await out.write(sse.frame(msgspec.json.encode(chunk)))
        elif out.may_begin:
            await out.write(sse.comment(item.text))


class _Events:
    """The channel of an event stream: begun by the first frame, one write a frame."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self.begun = False
        self._send = send
        self._headers = [(k.encode(), v.encode()) for k, v in {**_EVENTS, **headers}.items()]
        self._made_s = time.monotonic()

    @property
    def may_begin(self) -> bool:
        """Whether it has been silent for so long that a comment is due."""
        return self.begun or time.monotonic() - self._made_s >= EARLY_S

    async def write(self, frame: bytes) -> None:
        """Send one whole frame."""
        if not self.begun:
            self.begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await self._send({"type": "http.response.body", "body": frame, "more_body": True})

    async def end(self) -> None:
        """End the stream."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
