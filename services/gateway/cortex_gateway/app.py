"""The HTTP surface: which route does what."""

import time
from importlib.metadata import version

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from cortex_gateway import docs
from cortex_gateway.account import Account
from cortex_gateway.answer import ChatAnswer
from cortex_gateway.body import read_body
from cortex_gateway.dialects import openai_chat
from cortex_gateway.dialects.openai_answer import ChunkStream, Completion
from cortex_gateway.dialects.openai_models import ModelEntry, ModelList, Models
from cortex_gateway.envelope import add_error_answers, identified, request_id
from cortex_gateway.generate import Gateway, Generation
from cortex_kit.bus import Bus
from cortex_proto.errors import UnavailableError


def make_app(gateway: Gateway, bus: Bus) -> ASGIApp:
    """Build the app."""
    app = FastAPI(title="cortex", version=version("cortex"), redirect_slashes=False, redoc_url=None)
    app.openapi = lambda: docs.describe(app)  # type: ignore[method-assign]  # FastAPI's documented way
    add_error_answers(app)
    _add_probes(app, gateway, bus)
    _add_models(app, gateway)
    _add_chat(app, gateway, bus)
    return identified(app)


def _add_probes(app: FastAPI, gateway: Gateway, bus: Bus) -> None:
    async def about() -> Response:
        """Say who this is."""
        return JSONResponse({"name": "cortex", "version": app.version, "docs": "/docs"})

    async def health() -> Response:
        """Say that the process lives, and how many nodes it hears."""
        num_nodes = gateway.fleet.num_nodes
        return JSONResponse({"status": "ok" if num_nodes else "degraded", "nodes": {"healthy": num_nodes}})

    async def readyz() -> Response:
        """Say whether requests can be served: the bus is up and the catalogue known."""
        if not bus.is_connected:
            raise UnavailableError("the bus is not connected")
        return JSONResponse({"status": "ready", "models": len(gateway.catalogue.current.models)})

    for path, endpoint in (("/", about), ("/health", health), ("/readyz", readyz)):
        app.get(path, tags=["probes"])(endpoint)
        app.head(path, include_in_schema=False)(endpoint)


def _add_models(app: FastAPI, gateway: Gateway) -> None:
    created_s = int(time.time())

    def models() -> Models:
        return Models(gateway.catalogue.current, gateway.fleet.known, created_s)

    @app.get("/v1/models", openapi_extra=docs.answers(ModelList, "All models and aliases."))
    async def list_models() -> Response:
        """List the models, where they are loaded, and what is known of them."""
        return _json(models().all())

    @app.get("/v1/models/{id:path}", openapi_extra=docs.answers(ModelEntry, "One model."))
    async def get_model(id: str) -> Response:  # noqa: A002
        """Describe one model or alias; the id may have slashes in it."""
        return _json(models().one(id))


def _add_chat(app: FastAPI, gateway: Gateway, bus: Bus) -> None:
    @app.post("/v1/chat/completions", openapi_extra=docs.chat())
    async def chat_completions(request: Request) -> Response:
        """Continue a conversation."""
        arrived_s = time.monotonic()
        raw = await read_body(request, gateway.settings.max_body_bytes)
        asked = openai_chat.read(raw, request_id(request), bus.instance)
        account = Account(asked.generate.request, "openai_chat", stream=asked.stream, arrived_s=arrived_s)
        generation = Generation(gateway, asked.generate, account)
        usage = asked.include_usage or not asked.stream
        chunks = ChunkStream(
            asked.generate.request, asked.generate.model, int(time.time()), include_usage=usage
        )
        headers = {"x-cortex-ignored": ", ".join(asked.ignored)} if asked.ignored else {}
        return ChatAnswer(generation.deltas, chunks, headers, stream=asked.stream)


def _json(body: Completion | ModelEntry | ModelList) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
