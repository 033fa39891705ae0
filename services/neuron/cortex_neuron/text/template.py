"""Renders a conversation into one text with the model's own chat template, in a sandbox."""

import json
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from cortex_proto.errors import BadRequestError
from cortex_proto.generation import Chat, ChatTurn, ToolCall

_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""What a template raises on purpose, or by mishandling a conversation that it does not foresee."""


@dataclass(frozen=True, slots=True)
class Template:
    """A Jinja chat template, and the special tokens that it may name."""

    source: str
    special_tokens: tuple[tuple[str, str], ...] = ()
    """Such as ("bos_token", "<s>")."""

    def render(self, chat: Chat) -> str:
        """Write out `chat` up to where the assistant's turn begins.

        Raises:
            BadRequestError: the template cannot render this, for example a role it does not know.
        """
        messages = [_message(turn) for turn in chat.turns]
        try:
            render: Any = render_jinja_template  # its signature leaves out what templates are given
            texts, _ = render(
                conversations=[messages],
                chat_template=self.source,
                add_generation_prompt=True,
                **dict(self.special_tokens),
            )
        except _REFUSALS as error:
            reason = str(error) or type(error).__name__
            raise BadRequestError(
                f"the chat template of this model refuses the conversation: {reason}", "messages"
            ) from error
        return str(texts[0])


def _message(turn: ChatTurn) -> dict[str, Any]:
    """Write a turn as templates expect it; what is absent is left out, for many test with `is defined`."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        message["tool_calls"] = [_tool_call(call) for call in turn.tool_calls]
    if turn.tool_call_id is not None:
        message["tool_call_id"] = turn.tool_call_id
    return message


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": _arguments(call.arguments)},
    }


def _arguments(text: str) -> Any:
    """Read the arguments, since templates iterate over them; what is no JSON stays text."""
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return text
