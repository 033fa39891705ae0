"""Names of things, and how a name becomes one token of a NATS subject."""

import hashlib
import re
from typing import NewType

from cortex_proto.errors import BadRequestError

NodeId = NewType("NodeId", str)
"""A host running a neuron: lower-case letters, digits, "-" and "_"."""
ModelId = NewType("ModelId", str)
"""A catalogue entry, as the client writes it: "Qwen/Qwen3-0.6B"."""
InstanceId = NewType("InstanceId", str)
"""One run of one process, e.g. one gateway; new at each start."""
RequestId = NewType("RequestId", str)
"""One client request: 128 random bits in hex, so it is also an unguessable capability."""
StreamId = NewType("StreamId", str)
"""One attempt to serve a request on one node: `<request>-<attempt>`."""

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_UNFIT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters, and halves of surrogate pairs, which are no characters."""
_MAX_TOKEN_CHARS = 96
_MAX_ID_BYTES = 512
_NODE_ID = re.compile(r"[a-z0-9_-]{1,64}")
_RESERVED = frozenset(("any", "0"))
"""Stand where a node id stands in a subject, and mean something else there."""


def token(name: str) -> str:
    """Write `name` as one subject token that is also a valid KV key.

    The dot in "Qwen/Qwen3-0.6B" would split the subject. Every byte outside [A-Za-z0-9_-]
    becomes "=XX": "=" is legal in subjects and keys, "%" is not legal in keys. A result over
    96 characters keeps its first 64 and ends in "=Z" and a hash; Z is no hex digit, so a long
    name never collides with a short one. Injective, and reversible unless shortened.

    Raises:
        BadRequestError: `name` is empty, over 512 bytes, no Unicode, or holds a control character.
    """
    raw = name.encode(errors="surrogatepass")
    if not raw or len(raw) > _MAX_ID_BYTES or _UNFIT.search(name):
        raise BadRequestError(f"a model id has 1 to {_MAX_ID_BYTES} bytes and no control characters")
    text = "".join(chr(b) if b in _PLAIN else f"={b:02X}" for b in raw)
    if len(text) <= _MAX_TOKEN_CHARS:
        return text
    return f"{text[:64]}=Z{hashlib.blake2s(raw, digest_size=10).hexdigest()}"


def untoken(text: str) -> str | None:
    """Read back a name from its token; None if the token was shortened."""
    if "=Z" in text:
        return None
    return re.sub(rb"=([0-9A-F]{2})", lambda m: bytes([int(m[1], 16)]), text.encode()).decode()


def node_id(name: str) -> NodeId:
    """Make a host name into a node id: lower case, anything unusual becomes "-".

    Raises:
        BadRequestError: nothing is left of `name`, or it is "any" or "0", which subjects use.
    """
    text = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:64]
    if not _NODE_ID.fullmatch(text):
        raise BadRequestError(f"{name!r} holds no letter or digit, so it cannot name a node")
    if text in _RESERVED:
        raise BadRequestError(f"a node cannot be named {text!r}: subjects use that word")
    return NodeId(text)


def stream_id(request: RequestId, attempt: int) -> StreamId:
    """Name the `attempt`-th try (from 0) to serve `request`."""
    return StreamId(f"{request}-{attempt}")
