"""A cluster of two ranks: it answers as one rank does, and any rank's end is the end of all."""

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from builders.checkpoints import write_llama
from builders.clusters import COUNT, PROMPTS, Desk, ask, bounded, is_alive, tiny
from cortex_neuron.engine.messages import LoadOptions
from cortex_proto.errors import LoadFailedError, NodeLostError
from cortex_proto.ids import StreamId

SOME = (0, 2, 5)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> LoadOptions:
    return tiny(write_llama(tmp_path_factory.mktemp("llama")), world=2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone(options: LoadOptions) -> list[list[int]]:
    """What one rank answers."""
    desk = await Desk().open(replace(options, devices=("cpu",)))
    answers = [await desk.answer(ask(f"{n}", PROMPTS[n])) for n in SOME]
    await bounded(desk.cluster.close())
    return answers


@pytest_asyncio.fixture(loop_scope="module")
async def desk(options: LoadOptions) -> AsyncIterator[Desk]:
    desk = await Desk().open(options, step_limit_s=2.0)
    yield desk
    await bounded(desk.cluster.close())
    assert not any(map(is_alive, desk.cluster.pids))


@pytest.mark.asyncio(loop_scope="module")
async def test_two_ranks_answer_a_mixed_batch_as_one_answers_each(desk: Desk, alone: list[list[int]]) -> None:
    ends = [desk.submit(ask(f"{n}", PROMPTS[n])) for n in SOME]

    for end in ends:
        await bounded(end)

    assert len(desk.cluster.pids) == 2
    assert [desk.tokens[f"{n}"] for n in SOME] == alone
    assert {len(answer) for answer in alone} == {COUNT}


@pytest.mark.asyncio(loop_scope="module")
async def test_cancelling_one_frees_its_pages_and_leaves_its_neighbour(
    desk: Desk, alone: list[list[int]]
) -> None:
    kept = desk.submit(ask("kept", PROMPTS[SOME[0]]))
    gone = desk.submit(ask("gone", PROMPTS[7], count=800))
    await desk.until("gone", 3)

    desk.cluster.cancel(StreamId("gone"))

    await bounded(gone)
    await bounded(kept)
    assert desk.tokens["kept"] == alone[0]
    assert desk.last is not None
    assert desk.last.free_pages == desk.last.pages


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("rank", [0, 1])
async def test_a_killed_rank_ends_the_cluster_and_another_can_be_started(
    options: LoadOptions, desk: Desk, alone: list[list[int]], rank: int
) -> None:
    desk.submit(ask("a", PROMPTS[0], count=1000))
    await desk.until("a", 1)

    os.kill(desk.cluster.pids[rank], signal.SIGKILL)

    assert "rank" in await bounded(desk.cluster.died)
    with pytest.raises(NodeLostError):
        desk.cluster.submit(ask("b", PROMPTS[0]))
    await bounded(desk.cluster.close())
    assert not any(map(is_alive, desk.cluster.pids))
    again = await Desk().open(options)
    assert await again.answer(ask("again", PROMPTS[SOME[0]])) == alone[0]
    await bounded(again.cluster.close())


@pytest.mark.asyncio(loop_scope="module")
async def test_a_follower_that_is_stuck_ends_the_cluster_within_the_deadline(desk: Desk) -> None:
    desk.submit(ask("a", PROMPTS[0], count=1000))
    await desk.until("a", 1)

    os.kill(desk.cluster.pids[1], signal.SIGSTOP)

    assert "no step for 2 s though 1 requests wait" in await bounded(desk.cluster.died)


async def test_closing_in_the_middle_of_work_is_no_death(options: LoadOptions) -> None:
    desk = await Desk().open(options)
    desk.submit(ask("a", PROMPTS[0], count=1000))
    await desk.until("a", 1)

    await bounded(desk.cluster.close())

    assert not desk.cluster.died.done()
    assert not any(map(is_alive, desk.cluster.pids))


async def test_an_uneven_world_is_refused_with_the_numbers(options: LoadOptions, tmp_path: Path) -> None:
    path = write_llama(tmp_path, num_attention_heads=9, num_key_value_heads=3, hidden_size=72)

    with pytest.raises(LoadFailedError, match="9 query heads cannot be shared by 2 ranks"):
        await Desk().open(replace(options, path=path))
