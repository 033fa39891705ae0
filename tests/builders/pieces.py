"""Texts in pieces, and what deltas say however they were cut."""

import itertools
from collections.abc import Iterable, Sequence

from cortex_proto.generation import ReasoningDelta, TextDelta, ToolCallDelta

Said = tuple[str, ...]
"""("text", ...), ("thought", ...), or ("call", index, id, name, arguments)."""


def cut(text: str, places: Iterable[int]) -> list[str]:
    """Cut `text` at these places, each taken modulo its length."""
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def said(deltas: Sequence[object]) -> list[Said]:
    """Join neighbouring deltas of one kind; check that id and name of a call come once, and first."""
    joined: list[Said] = []
    for delta in deltas:
        match delta:
            case TextDelta(text=text) | ReasoningDelta(text=text):
                assert text, "a delta must say something"
                kind = "text" if isinstance(delta, TextDelta) else "thought"
                if joined and joined[-1][0] == kind:
                    text = joined.pop()[1] + text
                joined.append((kind, text))
            case ToolCallDelta(id=None, name=None):
                *known, arguments = joined.pop()
                assert known[:2] == ["call", str(delta.index)]
                joined.append((*known, arguments + delta.arguments))
            case ToolCallDelta(id=str(), name=str()):
                joined.append(("call", str(delta.index), delta.id or "", delta.name or "", delta.arguments))
            case _:
                raise AssertionError(f"unexpected: {delta}")
    return joined
