"""Writes the arguments of a tool call as JSON text while they come, in either of two notations."""

import json
from collections.abc import Mapping
from typing import Any, Protocol

from cortex_neuron.text.match import first_match, undecided

_PARAMETER = "<parameter="
_PARAMETER_ENDS = ("\n</parameter>", "</parameter>")
_FUNCTION_END = "</function>"
_BLOCK_END = "</tool_call>"
_MAX_DEPTH = 16
"""Of alternatives within alternatives in a schema; what is deeper is not looked at."""
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


class Arguments(Protocol):
    """The arguments of one call, as they come."""

    def take(self, piece: str) -> tuple[str, str | None]:
        """Take in the next piece; return JSON text, and what follows the arguments once they are over."""


class JsonArguments:
    """Arguments that are JSON already, from their brace on.

    Line breaks and the like inside a string, which models write but JSON forbids, are escaped.
    Nothing else is checked: callers must be ready for arguments that are no JSON.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._is_string = False
        self._is_escaped = False

    def take(self, piece: str) -> tuple[str, str | None]:
        """Take in the next piece; return JSON text, and what follows the arguments once they are over."""
        written: list[str] = []
        for place, character in enumerate(piece):
            if character == "<" and not self._is_string:  # no JSON: the block ends without its braces
                return "".join(written), piece[place:]
            written.append(self._write(character))
            if not self._depth:
                return "".join(written), piece[place + 1 :]
        return "".join(written), None

    def _write(self, character: str) -> str:
        if self._is_string:
            is_end = character == '"' and not self._is_escaped
            self._is_escaped = character == "\\" and not self._is_escaped
            self._is_string = not is_end
            return json.dumps(character)[1:-1] if character < " " else character
        if character == '"':
            self._is_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        return character


class XmlArguments:
    """Arguments as `<parameter=name>` blocks, up to `</function>`; values become what the schema says.

    Text is handed on as it comes, any other value when it is whole. What stands between the blocks
    is dropped.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        properties = schema.get("properties")
        self._properties: Mapping[str, Any] = properties if isinstance(properties, dict) else {}
        self._held = ""
        self._num_parameters = 0
        self._parameter: str | None = None
        """The one whose value is coming."""
        self._is_text = False
        self._at_start = False

    def take(self, piece: str) -> tuple[str, str | None]:
        """Take in the next piece; return JSON text, and what follows the arguments once they are over."""
        self._held += piece
        written = ""
        while True:
            if self._parameter is None:
                step, is_over = self._between()
            else:
                step, is_over = self._value(self._parameter), False
            if is_over:
                return written + (step or ""), self._held
            if step is None:
                return written + self._partial(), None
            written += step

    def _between(self) -> tuple[str | None, bool]:
        """Look for the next parameter or the end; None: there is neither yet."""
        marks = (_PARAMETER, _FUNCTION_END, _BLOCK_END)
        match = first_match(self._held, marks)
        if match is None:
            self._held = self._held[len(self._held) - undecided(self._held, marks) :]
            return None, False
        start, mark = match
        if mark != _PARAMETER:
            self._held = self._held[start + (len(mark) if mark == _FUNCTION_END else 0) :]
            return ("}" if self._num_parameters else "{}"), True
        name, bracket, rest = self._held[start + len(mark) :].partition(">")
        if not bracket:
            return None, False
        self._held = rest
        return self._begin(name.strip()), False

    def _begin(self, name: str) -> str:
        self._parameter = name
        self._is_text = _types(self._properties.get(name)) <= {"string"}
        self._at_start = True
        lead = ", " if self._num_parameters else "{"
        self._num_parameters += 1
        return f"{lead}{dump(name)}: " + ('"' if self._is_text else "")

    def _value(self, name: str) -> str | None:
        """Write the value to its end; None: it has not come yet."""
        self._skip_line_break()
        match = first_match(self._held, _PARAMETER_ENDS)
        if match is None:
            return None
        start, mark = match
        value, self._held = self._held[:start], self._held[start + len(mark) :]
        self._parameter = None
        return dump(value)[1:] if self._is_text else coerce(value, self._properties.get(name))

    def _partial(self) -> str:
        """Write as much of a text value as is certain."""
        if self._parameter is None or not self._is_text:
            return ""
        end = len(self._held) - undecided(self._held, _PARAMETER_ENDS)
        text, self._held = self._held[:end], self._held[end:]
        return dump(text)[1:-1]

    def _skip_line_break(self) -> None:
        """A value stands on lines of its own; their breaks are not part of it."""
        if self._at_start and self._held:
            self._at_start = False
            self._held = self._held.removeprefix("\n")


def coerce(text: str, schema: object) -> str:
    """Write a value as JSON of a type that `schema` allows; as a string if it is none of them."""
    word = text.strip()
    try:
        value = json.loads(_PYTHON_WORDS.get(word, word))
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return dump(text)
    return dump(value) if _type_names(value) & (_types(schema) - {"string"}) else dump(text)


def _types(schema: object, depth: int = 0) -> set[str]:
    """Name the types that a schema allows; none if it does not say. It is the caller's: it may be odd."""
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return set()
    if "$ref" in schema:
        return {"object", "array"}
    types = {name for name in _listed(schema.get("type")) if isinstance(name, str)}
    for key in ("anyOf", "oneOf", "allOf"):
        types.update(*(_types(branch, depth + 1) for branch in _listed(schema.get(key))))
    return types or {name for value in _listed(schema.get("enum")) for name in _type_names(value)}


def _listed(value: object) -> list[object]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _type_names(value: object) -> set[str]:
    """Name the JSON schema types that a value has."""
    match value:
        case None:
            return {"null"}
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number", "integer"} if value.is_integer() else {"number"}
        case str():
            return {"string"}
        case list():
            return {"array"}
        case _:
            return {"object"}


def dump(value: object) -> str:
    """Write JSON text that UTF-8 can carry: half a surrogate pair, which JSON can name, becomes "?"."""
    return sound(json.dumps(value, ensure_ascii=False))


def sound(text: str) -> str:
    """Replace what UTF-8 cannot carry."""
    return text.encode(errors="replace").decode()
