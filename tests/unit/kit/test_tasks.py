"""Tasks end, whatever they do with a cancellation."""

import asyncio

from cortex_kit.tasks import end


async def test_a_task_that_swallows_a_cancellation_ends_all_the_same() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while swallowed < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
        await asyncio.Event().wait()

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)

    await asyncio.wait_for(end(task), 10)

    assert task.cancelled()
    assert swallowed == 2


async def test_how_a_task_failed_is_ignored() -> None:
    async def fail() -> None:
        raise ValueError("no")

    task = asyncio.create_task(fail())

    await asyncio.wait_for(end(task), 10)

    assert task.done()
