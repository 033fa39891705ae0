"""Gives back the memory of a mapped file while it is read.

What is read through a mapping counts as memory of the process until it is unmapped, so a load
would need room for the whole file beside the whole model.
"""

import ctypes
import sys
from mmap import MADV_DONTNEED
from pathlib import Path

_DROP_BYTES = 8 * 2**20
"""Pages are given back after so much was read: seldom enough that it costs nothing."""


class Mapped:
    """A file that is mapped by whatever reads it, once from its beginning to its end."""

    def __init__(self, file: Path) -> None:
        self._name = str(file.resolve()).encode()
        self._num_bytes = 0

    def passed(self, num_bytes: int) -> None:
        """Say that `num_bytes` more were read, and are not needed any more; they can be read again."""
        self._num_bytes += num_bytes
        if self._num_bytes >= _DROP_BYTES and sys.platform == "linux":
            self._num_bytes = 0
            self._drop()

    def _drop(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        for line in Path("/proc/self/maps").read_bytes().splitlines():
            addresses, _, rest = line.partition(b" ")
            if rest.endswith(b" " + self._name):
                start, end = (int(address, 16) for address in addresses.split(b"-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)
