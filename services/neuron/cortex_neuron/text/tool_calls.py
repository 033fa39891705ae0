"""Finds the tool calls in an answer as it comes, in the notation that the model was trained on.

Blocks: `<tool_call>` with JSON in it (Hermes, Qwen) or with `<function=...>` and `<parameter=...>`
(Qwen Coder). Bare: the answer itself is JSON (Llama 3), calls parted by `;` or white space.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal

from cortex_neuron.text.arguments import Arguments, JsonArguments, XmlArguments, dump, sound
from cortex_neuron.text.match import first_match, undecided
from cortex_proto.generation import TextDelta, ToolCallDelta

BLOCK_OPEN = "<tool_call>"
BLOCK_CLOSE = "</tool_call>"
FUNCTION_OPEN = "<function="
PYTHON_TAG = "<|python_tag|>"

Notation = Literal["blocks", "bare"]
CallDelta = TextDelta | ToolCallDelta

_STRING = r'"((?:[^"\\]|\\.)*)"'
_JSON_HEAD = re.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*' + _STRING + r"\s*,\s*"
    r'"(?:arguments|parameters)"\s*:\s*(?=\{)',
    re.DOTALL,
)
"""What stands before the arguments of a call; if it is written otherwise, the block is read when whole."""
_XML_HEAD = re.compile(r"\s*<function=([^<>\s]+)>")
_XML_BEGINNING = re.compile(r"\s*<function=[^<>\s]*")
_FIRST_KEY = re.compile(r"\s*\{\s*" + _STRING)
_CALL_KEYS = frozenset(("type", "name", "arguments", "parameters", "id"))


@dataclass(frozen=True, slots=True)
class Calling:
    """How one answer may call tools."""

    notation: Notation
    schemas: Mapping[str, Mapping[str, Any]]
    """Of the parameters, by the name of the tool."""
    id_prefix: str
    """The ids are this and the number of the call."""


class _At(Enum):
    """Where in the answer we are."""

    TEXT = auto()
    HEAD = auto()
    """In a block whose name, or nature, is not known yet."""
    ARGUMENTS = auto()
    TAIL = auto()
    """Behind the arguments, before the end of the block."""
    BROKEN = auto()
    """In a block that is no call: it is handed on as text."""


class ToolCalls:
    """Sorts a text that comes in pieces into text and calls.

    Once the name is known the arguments follow as they come. A block that turns out to be no call
    before that is handed on as it stands. White space around calls is dropped.
    """

    def __init__(self, calling: Calling | None) -> None:
        self._calling = calling
        self._held = ""
        self._at = _At.TEXT
        self._is_fresh = True
        """Nothing but white space has come since the beginning, or since the last call."""
        self._opened = ""
        """The mark that opened this block."""
        self._arguments: Arguments = JsonArguments()
        self._num_scanned = 0
        """Characters of bare JSON, not known to be a call, that were looked through for its end."""
        self._num_begun = 0
        self.num_whole = 0
        """Calls whose end has come."""

    def take(self, piece: str) -> list[CallDelta]:
        """Take in the next piece; return what is certain."""
        if self._calling is None:
            return [TextDelta(piece)] if piece else []
        self._held += piece
        deltas: list[CallDelta] = []
        while self._held and (step := self._step(self._calling)) is not None:
            deltas += step
        return deltas

    def finish(self) -> list[CallDelta]:
        """Return what was held back: the text is over. A call that lacks only its end mark is one."""
        held, self._held = self._held, ""
        if self._at is _At.HEAD and self._calling is not None:
            return self._whole(held, held, self._calling)
        if self._at is _At.TAIL:
            held = held[: len(held) - undecided(held, (BLOCK_CLOSE,))].strip("} \t\r\n")
        return self._say(held)

    def _step(self, calling: Calling) -> list[CallDelta] | None:
        """Go one step on; None: more text must come first."""
        is_bare = calling.notation == "bare"
        match self._at:
            case _At.TEXT:
                return self._bare_text() if is_bare else self._text()
            case _At.HEAD:
                return self._bare_head(calling) if is_bare else self._head(calling)
            case _At.ARGUMENTS:
                return self._read_arguments()
            case _At.TAIL:
                return self._tail("}") if is_bare else self._tail(BLOCK_CLOSE, BLOCK_OPEN, FUNCTION_OPEN)
            case _At.BROKEN:
                return self._broken()

    def _text(self) -> list[CallDelta] | None:
        """Look for the next block."""
        opens = (BLOCK_OPEN, FUNCTION_OPEN)
        match = first_match(self._held, opens)
        if match is None:
            return self._release(opens)
        start, mark = match
        self._opened = mark if mark == BLOCK_OPEN else ""
        before, self._held = self._held[:start], self._held[start + len(self._opened) :]
        self._at = _At.HEAD
        return self._say("" if before.isspace() and self._is_fresh else before)

    def _release(self, marks: tuple[str, ...]) -> list[CallDelta] | None:
        """Say what no later piece can turn into something else."""
        end = len(self._held) - undecided(self._held, marks)
        text = self._held[:end]
        if not text or (self._is_fresh and text.isspace()):
            return None
        self._held = self._held[end:]
        return self._say(text)

    def _head(self, calling: Calling) -> list[CallDelta] | None:
        """Find out what a block is: JSON, XML, or neither."""
        beginning = self._held.lstrip()
        if not beginning:
            return None
        if beginning[0] == "{":
            return self._json_head(calling)
        if head := _XML_HEAD.match(self._held):
            schema = calling.schemas.get(head[1], {})
            return self._begin(head[1], XmlArguments(schema), head.end())
        if FUNCTION_OPEN.startswith(beginning) or _XML_BEGINNING.fullmatch(self._held):
            return None
        if not self._opened:
            return self._give_up(FUNCTION_OPEN)
        self._at = _At.BROKEN
        return self._say(self._opened)

    def _json_head(self, calling: Calling) -> list[CallDelta] | None:
        """Begin the call if its head is there before the end of the block, else read the block when whole."""
        head = _JSON_HEAD.match(self._held)
        end = self._held.find(BLOCK_CLOSE)
        if head and (end < 0 or head.end() < end + len(BLOCK_CLOSE)) and (name := _unquoted(head[1])):
            return self._begin(name, JsonArguments(), head.end())
        if end < 0:
            return None
        body, raw = self._held[:end], self._held[: end + len(BLOCK_CLOSE)]
        self._held = self._held[len(raw) :]
        return self._whole(body, raw, calling)

    def _bare_text(self) -> list[CallDelta] | None:
        """Look for JSON where an answer, or what follows a call, begins."""
        if not self._is_fresh:
            return self._release(())
        beginning = self._held.lstrip(" \t\r\n;" if self._num_begun else None)
        if PYTHON_TAG.startswith(beginning):
            return None
        if beginning.startswith(PYTHON_TAG):
            self._held = beginning.removeprefix(PYTHON_TAG)
            return []
        if beginning[0] != "{":
            return self._release(())
        self._held, self._at = beginning, _At.HEAD
        self._arguments, self._num_scanned = JsonArguments(), 0
        return []

    def _bare_head(self, calling: Calling) -> list[CallDelta] | None:
        """Begin the call as soon as its head is there; JSON that is no call is text."""
        head = _JSON_HEAD.match(self._held)
        if head and (name := _unquoted(head[1])) and name in calling.schemas:
            return self._begin(name, JsonArguments(), head.end())
        first_key = _FIRST_KEY.match(self._held)
        if head or (first_key and first_key[1] not in _CALL_KEYS):
            return self._give_up("{")
        written, rest = self._arguments.take(self._held[self._num_scanned :])
        if rest is None:
            self._num_scanned = len(self._held)
            return None
        if not written.endswith("}"):
            return self._give_up("{")
        raw = self._held[: len(self._held) - len(rest)]
        self._held = rest
        return self._whole(raw, raw, calling)

    def _give_up(self, mark: str) -> list[CallDelta]:
        """The mark at hand opens no call: say it, and go on behind it."""
        self._held = self._held[len(mark) :]
        self._at = _At.TEXT
        return self._say(mark)

    def _begin(self, name: str, arguments: Arguments, end: int) -> list[CallDelta]:
        """Announce a call; its arguments begin at `end`."""
        self._held = self._held[end:]
        self._arguments = arguments
        self._at = _At.ARGUMENTS
        return [self._announce(name)]

    def _announce(self, name: str) -> ToolCallDelta:
        assert self._calling is not None
        self._num_begun += 1
        index = self._num_begun - 1
        return ToolCallDelta(index, "", f"{self._calling.id_prefix}_{index}", name)

    def _read_arguments(self) -> list[CallDelta] | None:
        written, rest = self._arguments.take(self._held)
        self._held = rest or ""
        if rest is not None:
            self.num_whole += 1
            self._at = _At.TAIL
        return [ToolCallDelta(self._num_begun - 1, written)] if written else []

    def _tail(self, close: str, *opens: str) -> list[CallDelta] | None:
        """Drop what is left of the block; one without an end ends where the next begins."""
        match = first_match(self._held, (close, *opens))
        if match is None:
            return None
        start, mark = match
        self._held = self._held[start + (len(close) if mark == close else 0) :]
        self._at = _At.TEXT
        self._is_fresh = True
        return []

    def _broken(self) -> list[CallDelta] | None:
        """Hand on a block up to its end mark."""
        match = first_match(self._held, (BLOCK_CLOSE,))
        if match is None:
            return self._release((BLOCK_CLOSE,))
        end = match[0] + len(BLOCK_CLOSE)
        text, self._held = self._held[:end], self._held[end:]
        self._at = _At.TEXT
        return self._say(text)

    def _whole(self, body: str, raw: str, calling: Calling) -> list[CallDelta]:
        """Read a block that is there as a whole; say it if it is no call."""
        self._at = _At.TEXT
        call = _read_call(body)
        if call is None or (calling.notation == "bare" and call[0] not in calling.schemas):
            return self._say(self._opened + raw)
        name, arguments = call
        announced = self._announce(name)
        self.num_whole += 1
        self._is_fresh = True
        return [announced, ToolCallDelta(announced.index, arguments)]

    def _say(self, text: str) -> list[CallDelta]:
        if self._is_fresh and self._num_begun:
            text = text.lstrip()
        if not text:
            return []
        self._is_fresh = False
        return [TextDelta(text)]


def _unquoted(inside: str) -> str | None:
    """Read the inside of a JSON string."""
    try:
        name: str = json.loads(f'"{inside}"')
    except ValueError:
        return None
    return sound(name)


def _read_call(body: str) -> tuple[str, str] | None:
    """Read name and arguments from JSON in any order; None if it is no call."""
    try:
        call = json.loads(body)
        if not isinstance(call, dict) or not isinstance(name := call.get("name"), str) or not name:
            return None
        arguments = call.get("arguments", call.get("parameters"))
        if isinstance(arguments, str):
            arguments = json.loads(arguments or "{}")
        if arguments is None:
            arguments = {}
        return (sound(name), dump(arguments)) if isinstance(arguments, dict) else None
    except (ValueError, RecursionError):
        return None
