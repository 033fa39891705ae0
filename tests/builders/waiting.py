"""Waiting in tests: until something holds, within a bound, and never for a fixed time."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 0.02


def until(look: Callable[[], T], *, within_s: float, what: str) -> T:
    """Look again and again until the result is true, and return it; fail, naming `what`, after `within_s`."""
    deadline_s = time.monotonic() + within_s
    pause = threading.Event()
    while not (seen := look()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s:g} s: {what}; last seen: {seen!r}")
        pause.wait(_POLL_S)
    return seen
