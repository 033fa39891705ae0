"""The whole product while parts of it die: an explicit error at once, and service again by itself."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from builders.checkpoints import write_llama
from builders.tokenizers import write_tokenizer
from system.conftest import Cortex, CortexFactory

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


def write_model(folder: Path, seed: int) -> Path:
    """Write a tiny model that can hold a conversation, if not a sensible one."""
    write_llama(folder, seed=seed, vocab_size=512)
    write_tokenizer(folder)
    return folder


def entry(name: str, folder: Path, more: str = "") -> str:
    return f'[[models]]\nid = "{name}"\nsource = "{folder}"\n{more}\n'


@pytest.fixture
def one_model(cortex_factory: CortexFactory, tmp_path: Path) -> Cortex:
    """A system with one tiny model, ready."""
    system = cortex_factory(models=entry("tiny/one", write_model(tmp_path / "one", 1)))
    system.start()
    system.wait_ready()
    return system


def ask(system: Cortex, model: str, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, **more}
    return httpx.post(f"{system.url}/v1/chat/completions", json=body, timeout=60)


def events(response: httpx.Response) -> Iterator[dict[str, Any] | str]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            text = line.removeprefix("data: ")
            yield text if text == "[DONE]" else json.loads(text)


def test_a_killed_neuron_ends_its_streams_with_an_error_and_comes_back(one_model: Cortex) -> None:
    assert ask(one_model, "tiny/one").is_success
    endless = {
        "model": "tiny/one",
        "messages": [{"role": "user", "content": "go on"}],
        "max_tokens": 100_000,
        "ignore_eos": True,
        "stream": True,
    }

    with httpx.stream("POST", f"{one_model.url}/v1/chat/completions", json=endless, timeout=60) as response:
        stream = events(response)
        while not (event := next(stream))["choices"][0]["delta"].get("content"):  # type: ignore[index]
            pass
        neuron = one_model.child("neuron")
        assert neuron is not None
        neuron.kill()
        killed_s = time.monotonic()
        rest = list(stream)
        took_s = time.monotonic() - killed_s

    assert "error" in rest[-1]
    assert "[DONE]" not in rest
    assert all(e["choices"][0]["finish_reason"] is None for e in rest[:-1])  # type: ignore[index]
    assert took_s < 3.0  # the promise to the client, not a measure of speed
    one_model.wait(lambda: ask(one_model, "tiny/one").is_success, what="the model serves again", within_s=60)


@pytest.mark.parametrize("victim", ["nats", "scheduler", "evictor", "metrics", "gateway"])
def test_service_goes_on_after_the_death_of(victim: str, one_model: Cortex) -> None:
    assert ask(one_model, "tiny/one").is_success
    process = one_model.child(victim)
    assert process is not None

    process.kill()

    one_model.wait(lambda: one_model.child(victim) not in (None, process), what=f"{victim} is back")
    one_model.wait(lambda: one_model.answers("/readyz"), what="ready again")
    one_model.wait(lambda: ask(one_model, "tiny/one").is_success, what="an answer", within_s=60)


def test_a_loaded_model_is_served_while_the_control_plane_is_down(one_model: Cortex) -> None:
    assert ask(one_model, "tiny/one").is_success

    for name in ("scheduler", "evictor", "metrics"):
        process = one_model.child(name)
        assert process is not None
        process.suspend()

    assert ask(one_model, "tiny/one").is_success
