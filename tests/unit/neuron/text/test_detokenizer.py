"""Detokenising: whole characters only, and nothing lost."""

from hypothesis import given, settings
from hypothesis import strategies as st

from builders.tokenizers import byte_tokenizer
from cortex_neuron.text.detokenizer import Detokenizer

TOKENIZER = byte_tokenizer()
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
ANY_TOKENS = st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=40)


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text).ids)


def test_an_emoji_comes_out_whole_though_its_bytes_come_one_by_one() -> None:
    tokens = encode(FAMILY)
    detokenizer = Detokenizer(TOKENIZER, encode("say: "))

    pieces = [detokenizer.take([token]) for token in tokens]

    assert len(tokens) > len(FAMILY)
    assert [piece for piece in pieces if piece] == list(FAMILY)
    assert detokenizer.finish() == ""


def test_a_character_that_was_cut_off_is_left_out() -> None:
    detokenizer = Detokenizer(TOKENIZER, [])

    text = detokenizer.take([*encode("ok "), *encode("\U0001f600")[:3]])

    assert text + detokenizer.finish() == "ok "


def test_special_tokens_give_no_text() -> None:
    detokenizer = Detokenizer(TOKENIZER, [])

    assert detokenizer.take([3, *encode("hi"), 4]) == "hi"


def test_special_tokens_that_are_marks_are_shown() -> None:
    detokenizer = Detokenizer(TOKENIZER, [], {3: "[THINK]"})

    assert detokenizer.take([3, *encode("hi"), 4]) == "[THINK]hi"


@given(text=st.text(max_size=30), prompt=st.text(max_size=12))
@settings(deadline=None)
def test_text_survives_token_by_token(text: str, prompt: str) -> None:
    detokenizer = Detokenizer(TOKENIZER, encode(prompt))

    pieces = [detokenizer.take([token]) for token in encode(text)]

    assert "".join(pieces) + detokenizer.finish() == text.rstrip("\ufffd") or "\ufffd" in text


@given(tokens=ANY_TOKENS, prompt=ANY_TOKENS)
@settings(deadline=None)
def test_any_tokens_give_the_text_of_all_of_them(tokens: list[int], prompt: list[int]) -> None:
    detokenizer = Detokenizer(TOKENIZER, prompt)

    text = "".join([detokenizer.take([token]) for token in tokens]) + detokenizer.finish()

    whole: str = TOKENIZER.decode(tokens, skip_special_tokens=True)
    assert text.rstrip("\ufffd") == whole.rstrip("\ufffd")
