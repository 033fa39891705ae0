"""Nothing outlives its parent: the kernel kills this process when the one that started it is gone.

`python -m cortex_kit.tether <parent pid> <command>...` tethers a command that knows nothing of it.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tether_to_parent(parent_pid: int) -> None:
    """Be killed when the process `parent_pid`, our parent, dies; on Linux only, elsewhere do nothing.

    Raises:
        SystemExit: it is dead already.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it died before we asked
        raise SystemExit(1)


def main() -> None:
    """Tether this process, then become the command."""
    parent_pid, *command = sys.argv[1:]
    tether_to_parent(int(parent_pid))
    os.execvp(command[0], command)  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main()
