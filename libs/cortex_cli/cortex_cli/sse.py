"""Server-sent events, taken apart as they arrive. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Data:
    """The payload of one `data:` line."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Comment:
    """A line that starts with a colon: a sign of life."""

    text: str


Line = Data | Comment


class Lines:
    """Turns the chunks of a body, cut anywhere, into lines that mean something.

    OpenAI's streams put one event on one `data:` line, so an event is its line; other fields
    (`event:`, `id:`) and blank lines are passed over.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[Line]:
        """Take in the next chunk and return the lines it completes."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        return [line for raw in whole if (line := _read(raw.removesuffix(b"\r"))) is not None]


def _read(raw: bytes) -> Line | None:
    if raw.startswith(b"data:"):
        return Data(raw[5:].removeprefix(b" "))
    if raw.startswith(b":"):
        return Comment(raw[1:].decode(errors="replace").strip())
    return None
