"""The API description behind /docs, made from the very structs that read and write the bodies."""

from typing import Any

import msgspec
from fastapi import FastAPI

from cortex_gateway.dialects.openai_answer import Chunk, Completion
from cortex_gateway.dialects.openai_chat import ChatBody
from cortex_gateway.dialects.openai_error import ErrorBody
from cortex_gateway.dialects.openai_models import ModelEntry, ModelList

_KINDS = (ChatBody, Completion, Chunk, ErrorBody, ModelEntry, ModelList)
_REFS = "#/components/schemas/{name}"


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFS.format(name=kind.__name__)}}}


def answers(kind: type, text: str) -> dict[str, Any]:
    """Describe an operation that answers `kind`."""
    return {
        "responses": {
            "200": {"description": text, "content": _json(kind)},
            "default": {"description": "An error.", "content": _json(ErrorBody)},
        }
    }


def chat() -> dict[str, Any]:
    """Describe chat completions."""
    described = answers(Completion, "The answer; with stream = true, chunks and then [DONE].")
    events = {"schema": {"$ref": _REFS.format(name=Chunk.__name__)}}
    described["responses"]["200"]["content"]["text/event-stream"] = events
    return described | {"requestBody": {"required": True, "content": _json(ChatBody)}}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the whole description, schemas included."""
    if app.openapi_schema is None:
        described = type(app).openapi(app)
        _, schemas = msgspec.json.schema_components(_KINDS, ref_template=_REFS)
        described.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
        app.openapi_schema = described
    return app.openapi_schema
