"""Token by token, an answer comes out sorted: thoughts, text, calls; and it ends where it should."""

import pytest
from tokenizers import AddedToken, Tokenizer

from builders.pieces import Said, said
from builders.tokenizers import byte_tokenizer
from cortex_neuron.text.answer import Answer
from cortex_neuron.text.reasoning import THOUGHTS, Marks
from cortex_neuron.text.tokenizer import TextCodec, codec
from cortex_proto.generation import Chat, ChatTurn, Generate, Limits, Prompt, Text, TextDelta, Tool
from cortex_proto.ids import InstanceId, ModelId, RequestId, StreamId

TOOL = Tool("f", parameters='{"properties": {"days": {"type": "integer"}}}')
TURNS = (ChatTurn("user", "hi"),)
CHAT = Chat(TURNS)
CALLING = Chat(TURNS, tools=(TOOL,))
CALL = '<tool_call>\n{"name": "f", "arguments": {"days": 3}}\n</tool_call>'
THINKING = "{{ tools }}<think></think><tool_call>"


def tokenizer(*, is_special: bool = False, marks: tuple[str, ...] = ()) -> Tokenizer:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(mark, special=is_special) for mark in marks])
    return tokenizer


def answer(
    prompt: Prompt, *, opening: str = "", stops: tuple[str, ...] = (), text: TextCodec | None = None
) -> Answer:
    text = text or codec(tokenizer(), {"default": THINKING})
    generate = Generate(
        RequestId("r"), StreamId("r-0"), InstanceId("g"), ModelId("m"), prompt, limits=Limits(stop=stops)
    )
    return text.answer(generate, text.tokenizer.encode(opening).ids)


def written(answer: Answer, text: str, by: Tokenizer | None = None) -> list[Said]:
    tokens = (by or tokenizer()).encode(text).ids
    return said([delta for token in tokens for delta in answer.take([token])] + list(answer.finish()))


def test_thoughts_text_and_calls_are_told_apart() -> None:
    thinking = answer(CALLING)

    thought, text, (*head, arguments) = written(thinking, f"<think>\nhm\n</think>\n\nok {CALL}")

    assert (thought, text) == (("thought", "hm"), ("text", "ok "))
    assert head[:2] + head[3:] == ["call", "0", "f"]
    assert arguments == '{"days": 3}'
    assert (thinking.num_calls, thinking.is_over) == (1, False)


def test_marks_of_thoughts_inside_a_call_belong_to_its_arguments() -> None:
    (call,) = written(answer(CALLING), CALL.replace("3", '"<think>a</think>"'))

    assert call[-1] == '{"days": "<think>a</think>"}'


def test_ids_differ_from_call_to_call_and_from_stream_to_stream() -> None:
    first, second = (part[2] for part in written(answer(CALLING), CALL * 2))

    assert first.startswith("call_")
    assert first.removesuffix("_0") == second.removesuffix("_1")
    assert int(first.removeprefix("call_").removesuffix("_0"), 16)


def test_a_template_that_opened_the_block_lets_the_answer_begin_inside() -> None:
    assert written(answer(CHAT, opening="<im>assistant\n<think>\n"), "hm</think>42") == [
        ("thought", "hm"),
        ("text", "42"),
    ]
    assert written(answer(CHAT, opening="<think>\n\n</think>\n\n"), "42") == [("text", "42")]


def test_an_answer_cut_off_inside_its_thoughts_is_nothing_but_thoughts() -> None:
    assert written(answer(CHAT, opening="<think>"), "hm, so") == [("thought", "hm, so")]


def test_tokens_of_thoughts_are_counted() -> None:
    by = tokenizer(marks=("<think>", "</think>"))
    thinking = answer(CHAT, text=codec(by, {}))

    written(thinking, "<think>the cat</think>the mat", by)

    assert thinking.reasoning_tokens == len(by.encode("the cat").ids) + 1


def test_what_continues_a_plain_text_is_text() -> None:
    text = f"<think>{CALL}"

    assert written(answer(Text("a"), opening="<think>"), text) == [("text", text)]


def test_without_tools_a_call_is_text() -> None:
    assert written(answer(CHAT), CALL) == [("text", CALL)]


def test_marks_that_are_special_tokens_are_understood() -> None:
    by = tokenizer(is_special=True, marks=("[THINK]", "[/THINK]"))

    assert written(answer(CHAT, text=codec(by, {})), "[THINK]a[/THINK]b", by) == [
        ("thought", "a"),
        ("text", "b"),
    ]


def test_a_stop_string_is_looked_for_in_the_text_alone() -> None:
    stopped = answer(CALLING, stops=("3", "hm"))

    *kinds, last = written(stopped, f"<think>hm</think>{CALL}so 1 2 3 4")

    assert [kind for kind, *_ in kinds] == ["thought", "call"]
    assert last == ("text", "so 1 2 ")
    assert (stopped.stop, stopped.is_over) == ("3", True)


def test_text_that_might_be_a_stop_string_comes_before_the_call_behind_it() -> None:
    assert [part[0] for part in written(answer(CALLING, stops=("ok!",)), f"ok{CALL}")] == ["text", "call"]


def test_without_parallel_calls_the_answer_ends_with_the_first() -> None:
    one = answer(Chat(TURNS, tools=(TOOL,), parallel_tool_calls=False))

    (call,) = written(one, f"{CALL}\n{CALL} and more")

    assert call[-1] == '{"days": 3}'
    assert one.is_over
    assert one.num_calls == 1


def test_an_answer_ends_before_a_stop_string_that_spans_tokens() -> None:
    stopped = answer(CHAT, stops=("t o",))

    assert written(stopped, "the cat sat on the mat") == [("text", "the cat sa")]
    assert stopped.stop == "t o"


def test_an_answer_gives_back_what_it_held_when_it_ends() -> None:
    held = answer(CHAT, stops=("mat!",))

    assert held.take(tokenizer().encode("the mat").ids) == (TextDelta("the "),)
    assert held.finish() == (TextDelta("mat"),)
    assert held.stop is None


@pytest.mark.parametrize(
    ("template", "marks", "expected"),
    [
        ("", (), (None, None)),
        ("<tool_call>", ("<think>",), (THOUGHTS[0], "blocks")),
        ("[THINK]", (), (THOUGHTS[1], None)),
        ("{% if '</think>' in content %}", (), (THOUGHTS[0], None)),
        ('{"name": function name, "parameters": ...}', (), (None, "bare")),
        ("", ("<|python_tag|>",), (None, "bare")),
        ("<function=", (), (None, "blocks")),
    ],
)
def test_the_marks_are_found_in_template_or_vocabulary(
    template: str, marks: tuple[str, ...], expected: tuple[Marks | None, str | None]
) -> None:
    markup = codec(tokenizer(marks=marks), {"default": template}).markup

    assert (markup.thoughts, markup.calls) == expected
