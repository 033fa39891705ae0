"""Renders a conversation into one text with the model's own chat template, in a sandbox."""

import json
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from cortex_proto.errors import BadRequestError
from cortex_proto.generation import Chat, ChatTurn, Tool, ToolCall

_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, RecursionError)
"""What a template raises on purpose, or by mishandling a conversation that it does not foresee."""

_NOT_OPTIONS = frozenset(("messages", "documents", "return_assistant_tokens_mask", "continue_final_message"))


@dataclass(frozen=True, slots=True)
class Template:
    """A Jinja chat template, and the special tokens that it may name."""

    source: str
    special_tokens: tuple[tuple[str, str], ...] = ()
    """Such as ("bos_token", "<s>")."""
    tool_source: str | None = None
    """Some models have a template of its own for conversations with tools."""

    def render(self, chat: Chat) -> str:
        """Write out `chat` up to where the assistant's turn begins.

        Most templates want the arguments of past calls as objects, some as text: the first try that
        works counts.

        Raises:
            BadRequestError: the template cannot render this, for example a role it does not know, or
                it leaves out the tools.
        """
        try:
            text = self._render(chat, as_objects=True)
        except _REFUSALS as error:
            text = self._render_with_text(chat, error)
        source = self._source(chat)
        if hidden := [tool.name for tool in chat.tools if "tools" not in source or tool.name not in text]:
            raise BadRequestError(
                f"the chat template of this model does not show it the tool {hidden[0]!r}", "tools"
            )
        return text

    def _render_with_text(self, chat: Chat, error: Exception) -> str:
        """Try again, if that can make a difference, with arguments as text."""
        try:
            if any(turn.tool_calls for turn in chat.turns):
                return self._render(chat, as_objects=False)
        except _REFUSALS:
            pass
        reason = str(error) or type(error).__name__
        raise BadRequestError(
            f"the chat template of this model refuses the conversation: {reason}", "messages"
        ) from error

    def _render(self, chat: Chat, *, as_objects: bool) -> str:
        render: Any = render_jinja_template  # its signature leaves out what templates are given
        texts, _ = render(
            **_options(chat.template_options),
            **dict(self.special_tokens),
            conversations=[[_message(turn, as_objects=as_objects) for turn in chat.turns]],
            tools=[_tool(tool) for tool in chat.tools] or None,
            chat_template=self._source(chat),
            add_generation_prompt=True,
        )
        return str(texts[0])

    def _source(self, chat: Chat) -> str:
        return self.tool_source if chat.tools and self.tool_source else self.source


def _options(text: str) -> dict[str, Any]:
    """Read the caller's variables for the template. One that we set ourselves too is a TypeError."""
    options: dict[str, Any] = json.loads(text) if text else {}
    if taken := _NOT_OPTIONS & options.keys():
        raise TypeError(f"{min(taken)!r} is not for the caller to set")
    return options


def _message(turn: ChatTurn, *, as_objects: bool) -> dict[str, Any]:
    """Write a turn as templates expect it; what is absent is left out, for many test with `is defined`."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.reasoning:
        message["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        message["tool_calls"] = [_tool_call(call, as_objects=as_objects) for call in turn.tool_calls]
    if turn.tool_call_id is not None:
        message["tool_call_id"] = turn.tool_call_id
    return message


def _tool_call(call: ToolCall, *, as_objects: bool) -> dict[str, Any]:
    arguments = _arguments(call.arguments) if as_objects else call.arguments or "{}"
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _arguments(text: str) -> Any:
    """Read the arguments, since templates iterate over them; what is no JSON stays text."""
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return text


def _tool(tool: Tool) -> dict[str, Any]:
    """Write a tool as OpenAI does, which is what templates were made for."""
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    function["parameters"] = json.loads(tool.parameters or '{"type": "object", "properties": {}}')
    return {"type": "function", "function": function}
