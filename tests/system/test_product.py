"""The whole product with the real model, used as its users use it: through the vendor's SDK."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from system.conftest import Cortex

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTIONS = (
    "What is the capital of France?",
    "What is the capital of Italy?",
    "Count from one to five.",
    "Name a colour of the rainbow.",
)


@pytest.fixture(scope="module")
def client(cortex: Cortex) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{cortex.url}/v1", api_key="none", max_retries=0, timeout=120)


def greedy(question: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}]
    return {"model": MODEL, "messages": turns, "temperature": 0, "max_tokens": 24, **more}


def test_the_real_model_answers_sensibly(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**greedy(QUESTIONS[0]))

    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_the_same_as_a_whole_answer_and_ends_with_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**greedy(QUESTIONS[2]))

    chunks = list(
        client.chat.completions.create(
            **greedy(QUESTIONS[2], stream=True, stream_options={"include_usage": True})
        )
    )

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])


def test_sixteen_streams_at_once_do_not_mix(client: openai.OpenAI) -> None:
    alone = {q: client.chat.completions.create(**greedy(q)).choices[0].message.content for q in QUESTIONS}

    def stream(question: str) -> str:
        chunks = client.chat.completions.create(**greedy(question, stream=True))
        return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(stream, QUESTIONS * 4))

    assert together == [alone[q] for q in QUESTIONS * 4]


def test_an_unknown_model_is_a_typed_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(**{**greedy("Hi"), "model": "no-such/model"})

    assert raised.value.code == "model_not_found"


def test_a_seed_makes_a_random_answer_repeatable(client: openai.OpenAI) -> None:
    def draw(seed: int) -> str | None:
        asked = {**greedy(QUESTIONS[3]), "temperature": 1.5, "seed": seed}
        answer: str | None = client.chat.completions.create(**asked).choices[0].message.content
        return answer

    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**greedy(QUESTIONS[0])).choices[0].message.content or ""
    stop = whole[5:12]

    cut = client.chat.completions.create(**greedy(QUESTIONS[0], stop=[stop]))

    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_models_are_listed_and_retrieved_by_ids_with_slashes(client: openai.OpenAI, cortex: Cortex) -> None:
    assert MODEL in [m.id for m in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL
    assert httpx.get(f"{cortex.url}/v1/models/{MODEL}").json()["id"] == MODEL


def test_metrics_show_what_was_served(client: openai.OpenAI, cortex: Cortex) -> None:
    client.chat.completions.create(**greedy(QUESTIONS[0]))

    def served() -> bool:
        text = httpx.get(f"http://127.0.0.1:{cortex.ports.metrics}/metrics").text
        wanted = ("cortex_requests_total", "cortex_time_to_first_token_seconds_bucket", "cortex_loads_total")
        return all(f"{name}{{" in text and f'model="{MODEL}"' in text for name in wanted)

    cortex.wait(served, what="the metrics of a served request")


def test_the_neuron_tells_probes_about_itself(cortex: Cortex) -> None:
    url = f"http://127.0.0.1:{cortex.ports.neuron}"

    assert httpx.get(f"{url}/discovery").json()["devices"]
    assert httpx.get(f"{url}/health").status_code == 200
    assert httpx.get(f"{url}/models").status_code == 200
    assert httpx.post(f"{url}/models").status_code == 405
