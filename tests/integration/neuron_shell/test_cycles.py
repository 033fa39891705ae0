"""A neuron that has loaded and unloaded many times is as it was."""

import psutil
import pytest

from builders.neuron import Start, Watch
from cortex_proto.fleet import Ready, Unloaded

WARM_UP, CYCLES = 5, 50
GROWTH_BYTES = 4 * 2**20
"""What the reports that the test collects, and the allocator, may take."""


async def cycle(watch: Watch, first: int, count: int) -> None:
    for number in range(first, first + count):
        await watch.want(watch.model(), epoch=2 * number)
        await watch.until(Ready)
        await watch.want(epoch=2 * number + 1)
        await watch.until(Unloaded)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_many_loads_leave_no_growth_in_the_neuron(start: Start) -> None:
    ours = psutil.Process()
    watch = await start()
    await cycle(watch, 1, WARM_UP)
    fds, threads, resident = ours.num_fds(), ours.num_threads(), ours.memory_info().rss
    children = ours.children(recursive=True)

    await cycle(watch, 1 + WARM_UP, CYCLES)

    assert (ours.num_fds(), ours.children(recursive=True)) == (fds, children)
    assert ours.num_threads() <= threads + 2
    assert ours.memory_info().rss - resident < GROWTH_BYTES
