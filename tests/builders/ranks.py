"""Ranks that share models over gloo, without an engine around them.

`python -m builders.ranks <directory of the results> <model> ...` is one rank, and takes its seat from
its standard input; the leader saves the logits of every model.
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from builders.models import logits_at_each, random_tokens
from cortex_neuron.engine.seat import Seat, read_seat, seats, write_seat
from cortex_neuron.engine.team import join
from cortex_neuron.model.load import load

TOKENS = random_tokens(24)
LIMIT_S = 120.0


async def logits_of(world: int, models: Sequence[Path], results: Path) -> list[Tensor]:
    """Run each of `models` on `world` ranks over `TOKENS`; returns the leader's logits after each token."""
    with seats(world) as given:
        ranks = [_run(seat, models, results) for seat in given]
        codes = await asyncio.wait_for(asyncio.gather(*ranks), LIMIT_S)
    assert codes == [0] * world
    return [torch.load(results / f"{number}.pt") for number in range(len(models))]


async def _run(seat: Seat, models: Sequence[Path], results: Path) -> int:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "builders.ranks", str(results), *map(str, models)),
        stdin=PIPE,
        pass_fds=seat.sockets,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    try:
        await process.communicate(write_seat(seat))
    except BaseException:
        process.kill()
        raise
    assert process.returncode is not None
    return process.returncode


def main() -> None:
    """Be one rank."""
    torch.set_num_threads(1)
    results, *models = map(Path, sys.argv[1:])
    seat = read_seat(sys.stdin.buffer.read())
    with closing(join(seat, torch.device("cpu")).group) as group:
        for number, path in enumerate(models):
            model = load(path, device="cpu", dtype=torch.float32, on_progress=lambda *_: None, group=group)
            logits = logits_at_each(model, TOKENS)
            if seat.rank == 0:
                torch.save(logits, results / f"{number}.pt")


if __name__ == "__main__":
    main()
