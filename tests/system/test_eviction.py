"""Two models where one fits: they take turns, and a pinned one stays."""

from pathlib import Path

import httpx
import pytest

from system.conftest import Cortex, CortexFactory
from system.tiny import ask, entry, write_model

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

NODE = "box"
TIGHT = f'[neuron]\nname = "{NODE}"\nmemory_limit_mb = 1000\nkv_cache_mb = 16\n'
BIG = "vram_mb = 600"


def start(cortex_factory: CortexFactory, models: str) -> Cortex:
    system = cortex_factory(settings=TIGHT, models=models)
    system.start()
    system.wait_ready()
    return system


def evictions(system: Cortex) -> float:
    text = httpx.get(f"http://127.0.0.1:{system.ports.metrics}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("cortex_evictions_total{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_two_models_take_turns_where_one_fits(cortex_factory: CortexFactory, tmp_path: Path) -> None:
    one, two = (write_model(tmp_path / name, seed) for seed, name in enumerate(("one", "two")))
    system = start(cortex_factory, entry("tiny/one", one, BIG) + entry("tiny/two", two, BIG))

    answers = [ask(system, name) for _ in range(10) for name in ("tiny/one", "tiny/two")]

    assert [a.status_code for a in answers] == [200] * 20
    system.wait(lambda: evictions(system) >= 19, what="19 evictions in the metrics")


def test_a_pinned_model_is_never_evicted(cortex_factory: CortexFactory, tmp_path: Path) -> None:
    one, two = (write_model(tmp_path / name, seed) for seed, name in enumerate(("one", "two")))
    pinned = entry("tiny/one", one, f'{BIG}\npinned_on = ["{NODE}"]')
    system = start(cortex_factory, pinned + entry("tiny/two", two, BIG))
    assert ask(system, "tiny/one").is_success

    refused = ask(system, "tiny/two")

    assert refused.status_code == 503
    assert "pinned" in refused.json()["error"]["message"]
    assert ask(system, "tiny/one").is_success
    assert evictions(system) == 0
