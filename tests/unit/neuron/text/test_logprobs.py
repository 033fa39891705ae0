"""The ledger of logprobs: every token told once, and their bytes are those of the text sent."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from builders.tokenizers import byte_tokenizer
from cortex_neuron.engine.choosing import Logprobs
from cortex_neuron.engine.messages import Ended
from cortex_neuron.streams import Stream
from cortex_neuron.text.answer import Answer
from cortex_neuron.text.detokenizer import Detokenizer
from cortex_neuron.text.logprobs import Ledger, Vocabulary
from cortex_proto.generation import Generate, Logprob, Text, TextDelta
from cortex_proto.ids import InstanceId, ModelId, RequestId, StreamId

TOKENIZER = byte_tokenizer()
BYTES = byte_tokenizer(5 + 256)
"""Each byte is a token."""


def told(tokens: list[int]) -> list[Logprobs]:
    """Give each token its place as its logprob."""
    return [Logprobs(-float(place), ((5, -9.0),)) for place in range(len(tokens))]


def said(tokenizer: Tokenizer, tokens: list[int], *stops: str, cut: int = 1) -> list[TextDelta]:
    """What a stream says of `tokens` that come `cut` at a time."""
    stream = Stream(Generate(RequestId("r"), StreamId("s"), InstanceId("g"), ModelId("m"), Text("")), 0.0)
    stream.begin(Answer(Detokenizer(tokenizer, []), stops), 0.0, Ledger(tokenizer, []))
    logprobs = told(tokens)
    frames = [
        frame
        for start in range(0, len(tokens), cut)
        for frame in stream.sampled(tokens[start : start + cut], logprobs[start : start + cut])
    ]
    frames += stream.finished(Ended(StreamId("s"), "stop", 1, len(tokens), 0.0, 0.0, 0.0))
    return [frame.delta for frame in frames if isinstance(frame.delta, TextDelta)]


def joined(deltas: list[TextDelta]) -> tuple[str, list[Logprob], bytes]:
    logprobs = [one for delta in deltas for one in delta.logprobs]
    raw = b"".join(bytes(one.chosen.bytes) for one in logprobs)
    return "".join(delta.text for delta in deltas), logprobs, raw


@settings(deadline=None)
@given(st.text(alphabet="a \u00fc\u4f60\U0001f600the cat", max_size=20), st.sampled_from([1, 3, 50]))
def test_each_token_is_told_once_and_the_bytes_are_the_text(text: str, cut: int) -> None:
    tokens = TOKENIZER.encode(text).ids

    _, logprobs, raw = joined(said(TOKENIZER, tokens, cut=cut))

    assert raw.decode() == text
    assert [one.chosen.logprob for one in logprobs] == [-place for place in range(len(tokens))]


@settings(deadline=None)
@given(st.lists(st.integers(0, 260), max_size=12), st.sampled_from([(), ("a",), ("\u00fc", "bc")]))
def test_any_tokens_with_any_stop_give_the_bytes_of_the_text(
    tokens: list[int], stops: tuple[str, ...]
) -> None:
    text, _, raw = joined(said(BYTES, tokens, *stops))

    assert raw == text.encode()


def test_a_character_in_pieces_is_shared_by_its_tokens() -> None:
    [delta] = said(BYTES, BYTES.encode("\u4f60").ids)

    assert delta.text == "\u4f60"
    assert [bytes(one.chosen.bytes) for one in delta.logprobs] == [b"\xe4", b"\xbd", b"\xa0"]


def test_a_token_is_told_when_its_text_ends_also_after_it_was_held_back() -> None:
    deltas = said(BYTES, BYTES.encode("xab!").ids, "abc")

    assert [(delta.text, len(delta.logprobs)) for delta in deltas] == [("x", 1), ("ab!", 3)]


def test_of_a_token_that_a_stop_string_cuts_the_bytes_before_it_are_told() -> None:
    tokens = TOKENIZER.encode("the cat").ids
    assert [TOKENIZER.decode([token]) for token in tokens][-1].endswith("cat")

    text, logprobs, raw = joined(said(TOKENIZER, tokens, "at"))

    assert (text, raw) == ("the c", b"the c")
    assert len(logprobs) == len(tokens)


def test_tokens_of_a_character_that_is_cut_off_are_told_without_bytes() -> None:
    text, logprobs, raw = joined(said(BYTES, BYTES.encode("a\u4f60").ids[:-1]))

    assert (text, raw, len(logprobs)) == ("a", b"a", 3)


def test_text_that_was_not_sent_is_passed_over_with_its_tokens() -> None:
    ledger = Ledger(BYTES, [])
    tokens = BYTES.encode("<x>yz").ids
    ledger.take(tokens, told(tokens))

    assert [one.chosen.token for one in ledger.release("yz")] == ["y", "z"]
    assert ledger.rest(is_stopped=False) == ()


def test_a_special_token_has_a_name_and_no_bytes() -> None:
    likely = Vocabulary(TOKENIZER).likely(2, -1.0)

    assert (likely.token, likely.bytes) == ("</s>", ())


@pytest.mark.parametrize(("token", "raw"), [(0, b" the"), (1, b"\xe4"), (2, b"caf\xc3\xa9"), (9, b"")])
def test_the_tokens_of_a_sentencepiece_vocabulary_have_bytes_too(token: int, raw: bytes) -> None:
    vocabulary = {"\u2581the": 0, "<0xE4>": 1, "caf\u00e9": 2}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )

    assert Vocabulary(tokenizer).raw(token) == raw
