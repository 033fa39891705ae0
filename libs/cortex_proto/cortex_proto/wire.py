"""How a message becomes bytes: MessagePack maps with the class name under "type"; JSON for metrics."""

from typing import Any, TypeVar

import msgspec

M = TypeVar("M")


class Message(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Base of everything that crosses the wire; the tag is the class name.

    A field that a reader does not know is skipped, and a field with a default may be absent,
    so that a node one release older or newer understands us.
    """


def pack(message: object) -> bytes:
    """Encode for the bus."""
    return msgspec.msgpack.encode(message)


def unpack(payload: bytes, kind: type[M] | Any) -> M:
    """Decode and validate.

    Raises:
        msgspec.DecodeError: `payload` is no MessagePack or not of this `kind`.
    """
    result: M = msgspec.msgpack.decode(payload, type=kind)
    return result


def to_json(message: object) -> bytes:
    """Encode for people: metrics and events."""
    return msgspec.json.encode(message)


def from_json(payload: bytes, kind: type[M] | Any) -> M:
    """Decode what `to_json` wrote.

    Raises:
        msgspec.DecodeError: `payload` is not of this `kind`.
    """
    result: M = msgspec.json.decode(payload, type=kind)
    return result
