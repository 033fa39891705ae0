"""How fast the engine is by itself: no HTTP, no bus, no text. Run by `make bench-engine`.

SmolLM2-135M on the CPU, for each dtype one load, then waves of requests that all start at once and
produce the same number of tokens. No two prompts are alike, so that no cache helps.
"""

import argparse
import asyncio
import time
from collections import defaultdict
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from builders.engine import load_options, request
from builders.models import random_tokens, smollm2
from cortex_cli.bench_report import Level, Sample, level
from cortex_neuron.engine.cluster import Cluster
from cortex_neuron.engine.messages import Ended, Refused, Sampled, StepEvents

LOAD_LIMIT_S = 300.0
WAVE_LIMIT_S = 900.0
PREFILL_TOKENS = 512
WARM_UP_TOKENS = 8
"""Before each row: the first step of a new width builds its kernels."""
VOCAB = 49_152


class Wave:
    """Hands requests to a cluster, and notes when each of their tokens comes."""

    def __init__(self) -> None:
        self.cluster: Cluster | None = None
        self._ends: dict[str, asyncio.Future[Ended]] = {}
        self._times: dict[str, list[float]] = defaultdict(list)
        self._num_requests = 0

    def hear(self, step: StepEvents) -> None:
        now_s = time.perf_counter()
        for event in step.events:
            match event:
                case Sampled():
                    self._times[event.id] += [now_s] * len(event.tokens)
                case Ended():
                    self._ends[event.id].set_result(event)
                case Refused():
                    self._ends[event.id].set_exception(RuntimeError(event.error.message))

    async def run(self, concurrency: int, num_prompt: int, num_output: int) -> Level:
        """Start so many requests at once, and wait for all."""
        began_s = time.perf_counter()
        async with asyncio.timeout(WAVE_LIMIT_S):
            samples = await asyncio.gather(
                *(self._one(num_prompt, num_output, began_s) for _ in range(concurrency))
            )
        return level(concurrency, samples, time.perf_counter() - began_s)

    async def _one(self, num_prompt: int, num_output: int, began_s: float) -> Sample:
        assert self.cluster is not None
        self._num_requests += 1
        name = f"{self._num_requests}"
        self._ends[name] = asyncio.get_running_loop().create_future()
        prompt = random_tokens(num_prompt, VOCAB, seed=self._num_requests)
        self.cluster.submit(request(name, prompt, max_tokens=num_output, ignore_eos=True))
        ended = await self._ends[name]
        return Sample(began_s, tuple(self._times[name]), num_prompt, ended.output_tokens)


async def sweep(table: Table, dtype: str, options: argparse.Namespace) -> None:
    """Load the model in `dtype`, and add a row for each concurrency."""
    wave = Wave()
    began_s = time.perf_counter()
    wave.cluster = await Cluster.start(
        load_options(
            options.model,
            dtype=dtype,
            kv_bytes=2**30,
            max_batch=max(options.concurrency),
            max_waiting=max(options.concurrency),
            prefill_tokens=options.chunk,
            threads=options.threads,
        ),
        on_events=wave.hear,
        on_progress=lambda *_: None,
        timeout_s=LOAD_LIMIT_S,
    )
    load_s = time.perf_counter() - began_s
    try:
        for concurrency in options.concurrency:
            await wave.run(concurrency, options.prompt_tokens, WARM_UP_TOKENS)
            prefill = await wave.run(concurrency, PREFILL_TOKENS, 1)
            measured = await wave.run(concurrency, options.prompt_tokens, options.max_tokens)
            table.add_row(dtype, f"{load_s:.1f}", *row(measured, prefill))
    finally:
        await wave.cluster.close()


def row(measured: Level, prefill: Level) -> tuple[str, ...]:
    """Write one concurrency as cells."""
    ttft_s, gap_s = measured.ttft_s.p50 or 0.0, measured.inter_token_s.p50 or 0.0
    return (
        str(measured.concurrency),
        f"{1000 * ttft_s:.0f}",
        f"{1000 * gap_s:.1f}",
        f"{measured.tokens_per_s:.1f}",
        f"{prefill.prompt_tokens / prefill.duration_s:.0f}",
    )


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=None, help="a directory or .gguf file; SmolLM2-135M")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 16, 32])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=256, help="prompt tokens in one step at most")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.model = options.model or smollm2()
    heads = ("dtype", "load s", "streams", "TTFT ms", "gap ms", "tok/s", f"prefill tok/s ({PREFILL_TOKENS})")
    table = Table(*heads, box=MARKDOWN)
    for dtype in options.dtype:
        asyncio.run(sweep(table, dtype, options))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
