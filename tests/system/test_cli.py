"""The commands a user types, against a running system."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from builders.running import Cortex

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_chat_prints_the_answer_and_nothing_else_on_standard_output(cortex: Cortex) -> None:
    said = cortex.run("chat", "What is the capital of France?", "--temperature", "0", "--max-tokens", "16")

    assert said.returncode == 0, said.stderr
    assert said.stdout == "The capital of France is Paris.\n"
    assert said.stderr == ""


def test_chat_with_a_model_that_does_not_exist_says_so(cortex: Cortex) -> None:
    said = cortex.run("chat", "hi", "--model", "no/such")

    assert said.returncode == 1
    assert said.stderr.startswith("cortex: model 'no/such'")
    assert said.stdout == ""


def test_models_lists_the_catalogue(cortex: Cortex) -> None:
    listed = cortex.run("models", "--json")

    assert MODEL in [entry["id"] for entry in json.loads(listed.stdout)]


def test_status_shows_where_a_model_is_and_why(cortex: Cortex) -> None:
    cortex.ask("Say hello.")

    table, raw = cortex.run("status").stdout, json.loads(cortex.run("status", "--json").stdout)

    (model,) = raw["models"]
    (node,) = raw["nodes"]
    assert model["model"]["id"] == MODEL
    assert model["nodes"] == [node["id"]]
    assert model["because"] in table
    assert "ready, 0 running, 0 waiting" in table


def test_tap_prints_a_line_a_message_until_it_has_enough(cortex: Cortex) -> None:
    tapped = cortex.run("tap", "cortex.node.*", "--count", "2")

    lines = tapped.stdout.splitlines()
    assert len(lines) == 2
    subject, _, payload = lines[0].partition(" ")
    assert json.loads(payload)["type"] == "Node"
    assert subject == f"cortex.node.{json.loads(payload)['id']}"


def test_bench_counts_every_token_it_asked_for(cortex: Cortex, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"

    done = cortex.run(
        "bench", "--concurrency", "1,2", "--requests-per-level", "2", "--max-tokens", "8", "--json", str(file)
    )

    assert done.returncode == 0, done.stderr
    levels = json.loads(file.read_bytes())["levels"]
    assert [(one["concurrency"], one["errors"], one["output_tokens"]) for one in levels] == [
        (1, 0, 16),
        (2, 0, 16),
    ]
    assert all(0 < one["ttft_s"]["p50"] <= one["ttft_s"]["p99"] for one in levels)
    assert "tok/s in all" in done.stdout


def test_demo_starts_everything_answers_and_leaves_well(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cortex_cli.main", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "The capital of France is Paris." in done.stdout
    assert "first token after" in done.stdout
    assert done.stderr == ""
