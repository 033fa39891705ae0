"""Grammars: what is bound always parses, whatever the model wants; what cannot be bound is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.engine import limits, request
from builders.tokenizers import byte_tokenizer
from cortex_neuron.engine.choosing import Choosing
from cortex_neuron.engine.grammar import Grammars
from cortex_neuron.engine.messages import Ended, Refused
from cortex_neuron.engine.plan import Draw
from cortex_neuron.engine.sample import sample
from cortex_neuron.engine.scheduler import Scheduler
from cortex_proto.errors import BadRequestError
from cortex_proto.generation import Grammar, JsonSchema, Regex

TOKENIZER = byte_tokenizer()
VOCAB = TOKENIZER.get_vocab_size() + 7
"""More than the tokenizer has, as of most models."""
EOS = 2
BOUNDED = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["cat", "dog", None]},
        "legs": {"type": "integer", "minimum": 0, "exclusiveMaximum": 9},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "kind", "legs", "tags"],
    "additionalProperties": False,
    "$defs": {"tag": {"anyOf": [{"type": "boolean"}, {"const": "x"}]}},
}


@pytest.fixture(scope="module")
def grammars(tmp_path_factory: pytest.TempPathFactory) -> Grammars:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    TOKENIZER.save(str(path))
    return Grammars(path, [EOS])


def answer(grammars: Grammars, grammar: Grammar, seed: int, temperature: float = 1.0) -> str:
    """What a model with random wishes says until the grammar, or the end of the sequence, ends it."""
    matcher = grammars.bind(grammar)
    wishes = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    while not matcher.is_over:
        logits = torch.randn(1, VOCAB, generator=wishes) * 3
        draw = Draw(Choosing(temperature=temperature), seed, len(tokens), constraint=matcher)
        tokens += sample(logits, [draw])
        matcher.advance(tokens[-1])
        assert not matcher.fault
        assert len(tokens) < 500
    text: str = TOKENIZER.decode(tokens, skip_special_tokens=True)
    return text


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0.0, 1.0, 5.0]))
def test_every_answer_is_what_the_schema_says(grammars: Grammars, seed: int, temperature: float) -> None:
    value = json.loads(answer(grammars, JsonSchema(json.dumps(BOUNDED)), seed, temperature))

    assert list(value) == ["name", "kind", "legs", "tags"]
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 6
    assert value["kind"] in ("cat", "dog", None)
    assert value["legs"] in range(9)
    assert all(tag in (True, False, "x") for tag in value["tags"])
    assert 1 <= len(value["tags"]) <= 2


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_every_answer_matches_the_pattern(grammars: Grammars, seed: int) -> None:
    assert re.fullmatch(r"[a-c]{2,4}-\d+\.", answer(grammars, Regex(r"[a-c]{2,4}-[0-9]{1,9}\."), seed))


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (JsonSchema("{"), "EOF"),
        (JsonSchema("5"), "object schema"),
        (JsonSchema('{"type": "robot"}'), "robot"),
        (JsonSchema('{"$ref": "#/nowhere"}'), "nowhere"),
        (JsonSchema('{"not": {}}'), "not"),
        (Regex("a("), "unclosed group"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_the_reason(
    grammars: Grammars, grammar: Grammar, reason: str
) -> None:
    with pytest.raises(BadRequestError, match=reason) as caught:
        grammars.bind(grammar)

    assert caught.value.param == "response_format"


def bound(grammars: Grammars, pattern: str, **fields: Any) -> Scheduler:
    scheduler = Scheduler(limits(vocab_size=VOCAB), grammars.bind)
    scheduler.submit(request("a", grammar=Regex(pattern), **fields), seed=0, now_s=0.0)
    return scheduler


def test_an_answer_ends_where_its_grammar_does_whatever_else_was_asked(grammars: Grammars) -> None:
    scheduler = bound(grammars, "x", ignore_eos=True, min_tokens=5)
    plan = scheduler.plan(0.0)

    _, ended = scheduler.commit(plan, TOKENIZER.encode("x").ids, 1.0)

    assert plan.rows[0].draw is not None
    assert not plan.rows[0].draw.barred
    assert isinstance(ended, Ended)
    assert ended.reason == "stop"
    assert scheduler.num_free_pages == limits().num_pages


def test_a_grammar_that_cannot_go_on_fails_its_request(grammars: Grammars) -> None:
    scheduler = bound(grammars, "x")

    [refused] = scheduler.commit(scheduler.plan(0.0), TOKENIZER.encode("y").ids, 1.0)

    assert isinstance(refused, Refused)
    assert refused.error.code == "engine_error"
    assert scheduler.num_free_pages == limits().num_pages


def test_without_a_tokenizer_a_grammar_is_refused() -> None:
    with pytest.raises(BadRequestError, match="response_format"):
        Scheduler(limits()).submit(request("a", grammar=Regex("x")), seed=0, now_s=0.0)


def test_the_tokenizer_is_read_when_the_first_grammar_comes(tmp_path: Path) -> None:
    grammars = Grammars(tmp_path / "tokenizer.json", [EOS])
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))

    assert not grammars.bind(Regex("x")).is_over
