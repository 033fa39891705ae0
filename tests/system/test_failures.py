"""The whole product while parts of it die: an explicit error at once, and service again by itself."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from system.conftest import Cortex, CortexFactory
from system.tiny import ask, entry, write_model

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


@pytest.fixture
def one_model(cortex_factory: CortexFactory, tmp_path: Path) -> Cortex:
    """A system with one tiny model, ready."""
    system = cortex_factory(models=entry("tiny/one", write_model(tmp_path / "one", 1)))
    system.start()
    system.wait_ready()
    return system


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
        assert any(_content(event) for event in stream)
        neuron = one_model.child("neuron")
        assert neuron is not None
        neuron.kill()
        killed_s = time.monotonic()
        rest = list(stream)
        took_s = time.monotonic() - killed_s

    assert "error" in rest[-1]
    assert not any(_is_clean_end(event) for event in rest)
    assert took_s < 3.0  # the promise to the client, not a measure of speed
    one_model.wait(lambda: ask(one_model, "tiny/one").is_success, what="the model serves again", within_s=60)


def _content(event: dict[str, Any] | str) -> str | None:
    assert isinstance(event, dict)
    content: str | None = event["choices"][0]["delta"].get("content")
    return content


def _is_clean_end(event: dict[str, Any] | str) -> bool:
    if isinstance(event, str):
        return event == "[DONE]"
    return "choices" in event and event["choices"][0]["finish_reason"] is not None


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
