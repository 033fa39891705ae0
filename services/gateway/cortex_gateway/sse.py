"""Server-sent events as bytes: each call gives one whole frame, to be written at once."""

DONE = b"data: [DONE]\n\n"


def frame(payload: bytes) -> bytes:
    """Frame one event; `payload` is JSON on one line."""
    return b"data: " + payload + b"\n\n"


def comment(text: str) -> bytes:
    """Frame what clients skip; it keeps the connection alive and tells people what goes on."""
    return b": " + " ".join(text.split()).encode() + b"\n\n"
