"""OpenAI chat, inwards: the tools of a request body, and which of them may be called.

Source: the OpenAI API description (chat completions, create: tools, tool_choice).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cortex_proto.errors import BadRequestError
from cortex_proto.generation import Tool


class Function(msgspec.Struct, frozen=True):
    """A function that the model may call."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Whether the arguments must keep to the schema. Not enforced."""


class FunctionTool(msgspec.Struct, frozen=True):
    """The only kind of tool there is here."""

    function: Function
    type: Literal["function"] = "function"


ToolChoice = Literal["none", "auto", "required"] | dict[str, Any]


def offered(tools: Sequence[FunctionTool], choice: ToolChoice | None) -> tuple[Tool, ...]:
    """Return the tools that the model gets to see: none of them if it may call none.

    Raises:
        BadRequestError: two tools of one name, or a choice that takes a grammar to keep.
    """
    names = [tool.function.name for tool in tools]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadRequestError(f"there are two tools named {twice[0]!r}", "tools")
    if choice not in (None, "none", "auto"):
        raise BadRequestError("'tool_choice' may be 'none' or 'auto' here", "tool_choice")
    return () if choice == "none" else tuple(_tool(tool.function) for tool in tools)


def _tool(function: Function) -> Tool:
    return Tool(function.name, function.description or "", json_text(function.parameters))


def json_text(value: Mapping[str, Any] | None) -> str:
    """Write an object as JSON text; an absent one as nothing."""
    return msgspec.json.encode(value).decode() if value is not None else ""
