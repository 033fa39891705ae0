"""A cluster on a tiny random model: batching changes no answer, and nothing survives its end."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from builders.checkpoints import write_llama
from builders.clusters import COUNT, PROMPTS, Desk, ask, bounded, is_alive, tiny
from builders.engine import request
from builders.tokenizers import byte_tokenizer
from cortex_neuron.engine.messages import Ended, LoadOptions, Refused
from cortex_neuron.model.spec import kv_page_bytes, read_spec
from cortex_proto.errors import LoadFailedError, NodeLostError
from cortex_proto.generation import JsonSchema
from cortex_proto.ids import StreamId


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> LoadOptions:
    path = write_llama(tmp_path_factory.mktemp("llama"))
    byte_tokenizer().save(str(path / "tokenizer.json"))
    return replace(tiny(path), tokenizer=path / "tokenizer.json")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(options: LoadOptions) -> AsyncIterator[Desk]:
    desk = await Desk().open(options)
    yield desk
    await bounded(desk.cluster.close())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone(desk: Desk) -> list[list[int]]:
    """What each prompt is answered when nobody else is there."""
    return [await desk.answer(ask(f"alone-{n}", prompt)) for n, prompt in enumerate(PROMPTS)]


@pytest.mark.asyncio(loop_scope="module")
async def test_loading_tells_its_stages_and_what_is_offered(desk: Desk) -> None:
    assert "reading weights" in desk.stages
    assert (desk.cluster.context, desk.cluster.vocab_size) == (1024, 512)


@pytest.mark.asyncio(loop_scope="module")
async def test_eight_that_join_one_after_another_are_answered_as_alone(
    desk: Desk, alone: list[list[int]]
) -> None:
    ends = []
    for n, prompt in enumerate(PROMPTS):
        ends.append(desk.submit(ask(f"joined-{n}", prompt)))
        await desk.until(f"joined-{n}", 2)

    ended = await bounded(asyncio.gather(*ends))

    assert [desk.tokens[f"joined-{n}"] for n in range(8)] == alone
    for end, prompt in zip(ended, PROMPTS, strict=True):
        assert isinstance(end, Ended)
        assert (end.reason, end.prompt_tokens, end.output_tokens) == ("length", len(prompt), COUNT)
        assert min(end.queue_s, end.prefill_s, end.decode_s) > 0


@pytest.mark.asyncio(loop_scope="module")
async def test_cancelling_one_leaves_its_neighbours_answers_and_frees_its_pages(
    desk: Desk, alone: list[list[int]]
) -> None:
    kept = [desk.submit(ask(f"kept-{n}", PROMPTS[n])) for n in (0, 2)]
    gone = desk.submit(ask("gone", PROMPTS[7], count=800))
    await desk.until("gone", 3)

    desk.cluster.cancel(StreamId("gone"))

    ended = await bounded(gone)
    assert isinstance(ended, Ended)
    assert ended.reason == "cancelled"
    assert ended.output_tokens == len(desk.tokens["gone"]) < 800
    await bounded(asyncio.gather(*kept))
    assert [desk.tokens[f"kept-{n}"] for n in (0, 2)] == [alone[0], alone[2]]
    assert desk.last is not None
    assert (desk.last.running, desk.last.waiting, desk.last.free_pages) == (0, 0, desk.last.pages)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_seed_gives_the_same_answer_in_company_as_alone(desk: Desk) -> None:
    lone = await desk.answer(ask("lone", PROMPTS[1], temperature=1.5, top_p=0.9, seed=42))
    company = [desk.submit(ask(f"company-{n}", PROMPTS[n], temperature=1.0)) for n in range(4)]

    seeded = await desk.answer(ask("seeded", PROMPTS[1], temperature=1.5, top_p=0.9, seed=42))

    assert seeded == lone
    await bounded(asyncio.gather(*company))


@pytest.mark.asyncio(loop_scope="module")
async def test_settings_of_one_request_reach_the_sampler_and_not_its_neighbours(
    desk: Desk, alone: list[list[int]]
) -> None:
    bias = ((77, 100.0), (78, 99.0))
    plain = desk.submit(ask("plain", PROMPTS[1]))

    biased = await desk.answer(ask("biased", PROMPTS[1], 2, logit_bias=bias, repetition_penalty=9.0))
    stopped = await bounded(desk.submit(request("stopped", PROMPTS[1], logit_bias=bias, stop_ids=(77,))))

    assert biased == [77, 78]  # a ninth is left of the 100 of the one that is there
    assert isinstance(stopped, Ended)
    assert (stopped.reason, stopped.output_tokens) == ("stop", 1)
    await bounded(plain)
    assert desk.tokens["plain"] == alone[1]


@pytest.mark.asyncio(loop_scope="module")
async def test_logprobs_come_with_the_tokens_of_whoever_asks(desk: Desk, alone: list[list[int]]) -> None:
    asked = await desk.answer(ask("asked", PROMPTS[1], logprobs=2))

    told = desk.logprobs["asked"]
    assert asked == alone[1]
    assert [one.top[0] for one in told] == [
        (token, one.chosen) for token, one in zip(asked, told, strict=True)
    ]
    assert all(len(one.top) == 2 and 0 > one.chosen > one.top[1][1] for one in told)
    assert not desk.logprobs["alone-1"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_grammar_binds_its_request_and_not_its_neighbours(desk: Desk, alone: list[list[int]]) -> None:
    plain = desk.submit(ask("free", PROMPTS[2]))
    grammar = JsonSchema('{"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3}')

    fields = {"grammar": grammar, "temperature": 1.0, "seed": 3}
    first, again = [await desk.answer(ask(f"bound-{n}", PROMPTS[2], 300, **fields)) for n in range(2)]
    refused = await bounded(desk.submit(ask("unbound", PROMPTS[2], grammar=JsonSchema('{"type": "robot"}'))))

    assert len(json.loads(byte_tokenizer().decode(first))) == 3
    assert again == first
    assert isinstance(refused, Refused)
    assert refused.error.code == "invalid_request"
    assert "robot" in refused.error.message
    await bounded(plain)
    assert desk.tokens["free"] == alone[2]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_prompt_that_is_too_long_is_refused(desk: Desk) -> None:
    refused = await bounded(desk.submit(ask("long", [5] * 1024)))

    assert isinstance(refused, Refused)
    assert refused.error.code == "context_length_exceeded"


@pytest.mark.asyncio(loop_scope="module")
async def test_one_more_than_may_wait_is_told_busy(desk: Desk) -> None:
    ends = [desk.submit(ask(f"crowd-{n}", PROMPTS[0], count=300)) for n in range(30)]

    ended = await bounded(asyncio.gather(*ends))

    refused = [end.error for end in ended if isinstance(end, Refused)]
    assert refused
    assert {error.code for error in refused} == {"busy"}
    assert all(error.retryable for error in refused)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("length", "cached"), [(64, 0), (65, 64), (128, 64), (300, 256)])
async def test_a_cached_prefix_changes_no_answer(desk: Desk, length: int, cached: int) -> None:
    prompt = [length, *range(5, 4 + length)]
    cold = await desk.answer(ask(f"cold-{length}", prompt))

    ended = await bounded(desk.submit(ask(f"warm-{length}", prompt)))

    assert isinstance(ended, Ended)
    assert ended.cached_tokens == cached
    assert desk.tokens[f"warm-{length}"] == cold


@pytest.mark.asyncio(loop_scope="module")
async def test_the_next_turn_is_answered_as_if_nothing_were_cached(desk: Desk) -> None:
    said = await desk.answer(ask("turn-1", PROMPTS[4], count=100))
    prompt = [*PROMPTS[4], *said, 7, 8, 9]
    cold = await desk.answer(ask("turn-2-cold", prompt, salt="another"))

    ended = await bounded(desk.submit(ask("turn-2", prompt)))

    assert isinstance(ended, Ended)
    assert ended.cached_tokens == (len(PROMPTS[4]) + 99) // 64 * 64
    assert desk.tokens["turn-2"] == cold


async def test_thirty_two_in_one_batch_some_of_them_cancelled_are_answered_as_alone(
    options: LoadOptions,
) -> None:
    prompts = [[*range(20, 90), 100 + n, *range(n)] for n in range(32)]
    desk = await Desk().open(replace(options, max_batch=32, max_waiting=64))
    try:
        alone = [await desk.answer(ask(f"alone-{n}", prompt, 20)) for n, prompt in enumerate(prompts)]
        for salt in ("", "nothing of this is cached"):
            ends = [desk.submit(ask(f"{n}{salt}", p, 20, salt=salt)) for n, p in enumerate(prompts)]
            await desk.until(f"0{salt}", 2)
            for n in range(3, 32, 4):
                desk.cluster.cancel(StreamId(f"{n}{salt}"))
            await bounded(asyncio.gather(*ends))

            kept = [n for n in range(32) if n % 4 != 3]
            assert [desk.tokens[f"{n}{salt}"] for n in kept] == [alone[n] for n in kept]
    finally:
        await bounded(desk.cluster.close())
    assert desk.last is not None
    assert desk.last.free_pages == desk.last.pages


async def test_preemption_changes_no_answer(options: LoadOptions, alone: list[list[int]]) -> None:
    page_bytes = kv_page_bytes(read_spec(options.path), options.dtype)
    desk = await Desk().open(replace(options, kv_bytes=4 * page_bytes))
    try:
        ends = [desk.submit(ask(f"{n}", PROMPTS[n])) for n in (1, 2, 4)]
        await bounded(asyncio.gather(*ends))
    finally:
        await bounded(desk.cluster.close())

    assert desk.cluster.context == 4 * 64
    assert desk.preemptions > 0
    assert [desk.tokens[f"{n}"] for n in (1, 2, 4)] == [alone[n] for n in (1, 2, 4)]
    assert desk.last is not None
    assert desk.last.free_pages == 4


async def test_a_killed_rank_is_reported_dead(options: LoadOptions) -> None:
    desk = await Desk().open(options)
    desk.submit(ask("a", PROMPTS[0], count=1000))
    await desk.until("a", 1)

    os.kill(desk.cluster.pids[0], signal.SIGKILL)

    assert await bounded(desk.cluster.died) == "rank 0 was killed by SIGKILL"
    with pytest.raises(NodeLostError):
        desk.cluster.submit(ask("b", PROMPTS[0]))
    await bounded(desk.cluster.close())


async def test_a_rank_that_stops_in_the_middle_of_its_work_is_reported_dead_and_ended(
    options: LoadOptions,
) -> None:
    desk = await Desk().open(options, step_limit_s=0.5)
    desk.submit(ask("a", PROMPTS[0], count=1000))
    await desk.until("a", 1)

    os.kill(desk.cluster.pids[0], signal.SIGSTOP)

    assert "1 requests wait" in await bounded(desk.cluster.died)
    await bounded(desk.cluster.close())
    assert not is_alive(desk.cluster.pids[0])


async def test_closing_ends_the_process_and_is_no_death(options: LoadOptions) -> None:
    desk = await Desk().open(options)
    desk.submit(ask("a", PROMPTS[0], count=1000))
    await desk.until("a", 1)

    await bounded(desk.cluster.close())
    await bounded(desk.cluster.close())

    assert not desk.cluster.died.done()
    assert not is_alive(desk.cluster.pids[0])


async def test_a_rank_does_not_outlive_its_parent(options: LoadOptions) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, str(options.path)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    rank = os.pidfd_open(int(await bounded(parent.stdout.readline())))
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(rank, gone.set)

    parent.kill()

    await bounded(gone.wait())
    asyncio.get_running_loop().remove_reader(rank)
    os.close(rank)
    await bounded(parent.wait())


async def test_a_model_that_is_not_there_fails_with_the_reason(options: LoadOptions, tmp_path: Path) -> None:
    with pytest.raises(LoadFailedError, match="neither a model directory nor"):
        await Desk().open(replace(options, path=tmp_path / "nothing"))


async def test_a_damaged_model_fails_with_the_reason(options: LoadOptions, tmp_path: Path) -> None:
    for file in options.path.iterdir():
        cut = file.read_bytes() if file.suffix == ".json" else file.read_bytes()[:-1000]
        (tmp_path / file.name).write_bytes(cut)

    with pytest.raises(LoadFailedError, match=str(tmp_path)):
        await Desk().open(replace(options, path=tmp_path))


async def test_too_little_memory_for_keys_and_values_fails_with_the_numbers(options: LoadOptions) -> None:
    with pytest.raises(LoadFailedError, match="1000 bytes for keys and values hold no page of"):
        await Desk().open(replace(options, kv_bytes=1000))


async def _be_a_parent(path: str) -> None:
    """Start a cluster, name its process, and wait to be killed."""
    desk = await Desk().open(tiny(Path(path)))
    sys.stdout.write(f"{desk.cluster.pids[0]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_be_a_parent(sys.argv[1]))
