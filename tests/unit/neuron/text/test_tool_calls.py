"""Calls are found in every notation, however the text comes; what is no call stays text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.pieces import Said, cut, said
from cortex_neuron.text.arguments import coerce
from cortex_neuron.text.tool_calls import Calling, Notation, ToolCalls

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "tags": {"type": "array"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
}
PIECES = [
    *("<tool_call>", "</tool_call>", "<function=f>", "</function>", "<parameter=city>", "<parameter=days>"),
    *("</parameter>", '{"name": "f", "arguments": ', '{"name": "f", "parameters": ', '{"city": "', '"}', "}"),
    *("<|python_tag|>", "{", "\n", " ", ";", "<", '"', "\\", "7", "a", "\u00e9"),
]
CALL_F = '<tool_call>{"name":"f","arguments":{}}</tool_call>'
CALL_G = CALL_F.replace('"f"', '"g"')
DEEP: dict[str, Any] = {"type": "integer"}
for _ in range(1000):
    DEEP = {"anyOf": [DEEP]}
CUTS = st.lists(st.integers(0, 200), max_size=10)


def calls(notation: Notation = "blocks") -> ToolCalls:
    return ToolCalls(Calling(notation, {"f": SCHEMA, "g": {}}, "call_ab"))


def run(pieces: list[str], notation: Notation = "blocks") -> list[Said]:
    reader = calls(notation)
    return said([delta for piece in pieces for delta in reader.take(piece)] + reader.finish())


def call(index: int, name: str, arguments: str) -> Said:
    return ("call", str(index), f"call_ab_{index}", name, arguments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {"city": "Ulm"}}\n</tool_call>',
         [call(0, "f", '{"city": "Ulm"}')]),
        (f"Wait.\n{CALL_F}\n{CALL_G}\n", [("text", "Wait.\n"), call(0, "f", "{}"), call(1, "g", "{}")]),
        ('<tool_call>{"arguments": {"days": 1}, "name": "f"}</tool_call> Done.',
         [call(0, "f", '{"days": 1}'), ("text", "Done.")]),
        ('<tool_call>{"name": "f", "arguments": "{\\"days\\": 1}"}</tool_call>',
         [call(0, "f", '{"days": 1}')]),
        ('<tool_call>{"name": "g"}</tool_call>', [call(0, "g", "{}")]),
        ('<tool_call>{"name": "g", "arguments": null}</tool_call>', [call(0, "g", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {"city": "}</tool_call>"}}</tool_call>',
         [call(0, "f", '{"city": "}</tool_call>"}')]),
        ('<tool_call>{"name": "f", "arguments": {"city": "a\nb"}}</tool_call>',
         [call(0, "f", '{"city": "a\\nb"}')]),
        ('<tool_call>{"name": "f", "arguments": {"city": "Ulm"}</tool_call>ok',
         [call(0, "f", '{"city": "Ulm"}'), ("text", "ok")]),
        ('<tool_call>{"name": "f", "arguments": {"city": "Ulm"}}',
         [call(0, "f", '{"city": "Ulm"}')]),
        ('<tool_call>{"name": "\\u0066", "arguments": {}}</tool_call>', [call(0, "f", "{}")]),
        ('<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>', [call(0, "?", "{}")]),
    ],
)  # fmt: skip
def test_json_in_a_block_is_a_call(text: str, expected: list[Said]) -> None:
    assert run([text]) == run(list(text)) == expected


@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        ("", {}),
        ("<parameter=city>\nNew\nUlm\n</parameter>\n", {"city": "New\nUlm"}),
        ("<parameter=city>7</parameter><parameter=days>\n7\n</parameter>", {"city": "7", "days": 7}),
        ("<parameter=days>soon</parameter>", {"days": "soon"}),
        ("<parameter=exact>True</parameter><parameter=note>null</parameter>", {"exact": True, "note": None}),
        ('<parameter=tags>["a", {"b": 1}]</parameter>', {"tags": ["a", {"b": 1}]}),
        ("<parameter=note>7</parameter><parameter=other>7</parameter>", {"note": "7", "other": "7"}),
        ('<parameter=city>say "\u00e9" \\ <b>\t</parameter>', {"city": 'say "\u00e9" \\ <b>\t'}),
        ("<parameter=city></parameter>", {"city": ""}),
        ("<parameter=city>\n</parameter>", {"city": ""}),
        ("<parameter=city>\n\n\n</parameter>", {"city": "\n"}),
    ],
)
def test_xml_in_a_block_is_a_call(parameters: str, arguments: dict[str, Any]) -> None:
    text = f"<tool_call>\n<function=f>\n{parameters}</function>\n</tool_call>"

    ((*head, written),) = run(list(text))

    assert head == ["call", "0", "call_ab_0", "f"]
    assert json.loads(written) == arguments
    assert run([text])[0][-1] == written


def test_a_function_needs_no_block_around_it() -> None:
    text = "<function=f>\n</function>\n</tool_call>\nand"

    assert run([text]) == run(list(text)) == [call(0, "f", "{}"), ("text", "and")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "f", "parameters": {"days": 2}}', [call(0, "f", '{"days": 2}')]),
        ('<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}',
         [call(0, "f", "{}"), call(1, "g", "{}")]),
        ('{"type": "function", "name": "f", "parameters": {}}', [call(0, "f", "{}")]),
        ('{"parameters": {"days": 2}, "name": "f"}', [call(0, "f", '{"days": 2}')]),
        ('{"name": "f", "parameters": {}}\n\nDone.', [call(0, "f", "{}"), ("text", "Done.")]),
        ('{"name": "Ada", "parameters": {}}', [("text", '{"name": "Ada", "parameters": {}}')]),
        ('{"parameters": {}, "name": "Ada"}', [("text", '{"parameters": {}, "name": "Ada"}')]),
        ('{"answer": 42} {"name": "f", "parameters": {}}',
         [("text", '{"answer": 42} {"name": "f", "parameters": {}}')]),
        ('{"name": <b>', [("text", '{"name": <b>')]),
        (' so {"name": "f", "parameters": {}}', [("text", ' so {"name": "f", "parameters": {}}')]),
        ("<|python_tag|>print()", [("text", "print()")]),
    ],
)  # fmt: skip
def test_bare_json_is_a_call_where_the_answer_begins(text: str, expected: list[Said]) -> None:
    assert run([text], "bare") == run(list(text), "bare") == expected


@pytest.mark.parametrize(
    "text",
    [
        "a <b> c",
        "<tool_call>no call</tool_call> and on",
        "<tool_call>{'name': 'f'}</tool_call>",
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        "<tool_call>[1]</tool_call>",
        '<tool_call>{"arguments": ' + "[" * 5000 + "</tool_call>",
        '<tool_call>{"name": "</tool_call>", "arguments": {}}',
        '<tool_call>{"name": "f", "argu',
        "<tool_call>\n<function=f",
        "<tool_call><function=>x</function></tool_call>",
        "<function=> is how it begins",
        "<tool_call>",
        "<tool_",
    ],
)
def test_what_is_no_call_is_handed_on_as_it_stands(text: str) -> None:
    assert run([text]) == run(list(text)) == [("text", text)]


def test_a_call_is_found_behind_a_broken_one() -> None:
    text = '<tool_call>no call</tool_call>\n<tool_call>{"name": "g", "arguments": {}}</tool_call>'

    assert run(list(text)) == [("text", "<tool_call>no call</tool_call>\n"), call(0, "g", "{}")]


def test_json_arguments_come_in_pieces() -> None:
    reader = calls()

    assert reader.take('<tool_call>{"name": "f", "argum') == []
    assert said(reader.take('ents": {"ci')) == [call(0, "f", '{"ci')]
    assert [delta.arguments for delta in reader.take('ty": "Ul') if hasattr(delta, "arguments")] == [
        'ty": "Ul'
    ]
    assert reader.num_whole == 0
    assert [delta.arguments for delta in reader.take('m"}}') if hasattr(delta, "arguments")] == ['m"}']
    assert reader.num_whole == 1


def test_xml_text_comes_in_pieces() -> None:
    reader = calls()

    reader.take("<tool_call><function=f><parameter=city>")

    assert [delta.arguments for delta in reader.take("New ") if hasattr(delta, "arguments")] == ["New "]
    assert [delta.arguments for delta in reader.take("Ulm") if hasattr(delta, "arguments")] == ["Ulm"]


@pytest.mark.parametrize(
    "text",
    ['<tool_call>{"name": "f", "arguments": {"city": "Ul', "<tool_call><function=f><parameter=city>Ul"],
)
def test_a_call_that_was_cut_off_is_not_whole(text: str) -> None:
    reader = calls()

    deltas = reader.take(text) + reader.finish()

    assert said(deltas) == [call(0, "f", '{"city": "Ul')]
    assert reader.num_whole == 0


def test_without_tools_everything_is_text() -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'

    assert said(ToolCalls(None).take(text)) == [("text", text)]


@given(words=st.lists(st.sampled_from(PIECES)), places=CUTS, notation=st.sampled_from(["blocks", "bare"]))
def test_any_cut_gives_the_same(words: list[str], places: list[int], notation: Notation) -> None:
    text = "".join(words)

    assert run(cut(text, places), notation) == run([text], notation) == run(list(text), notation)


@given(
    arguments=st.dictionaries(
        st.text(),
        st.recursive(st.integers() | st.text() | st.booleans() | st.none(), st.lists),
    ),
    notation=st.sampled_from(["blocks", "bare"]),
    escape=st.booleans(),
)
def test_any_arguments_survive(arguments: dict[str, Any], notation: Notation, *, escape: bool) -> None:
    written = json.dumps({"name": "f", "arguments": arguments}, ensure_ascii=escape)
    text = f"<tool_call>\n{written}\n</tool_call>" if notation == "blocks" else written

    (found,) = run(list(text), notation)

    assert json.loads(found[-1]) == arguments


@pytest.mark.parametrize(
    ("text", "schema", "expected"),
    [
        ("3", {"type": "integer"}, "3"),
        ("3.5", {"type": "integer"}, '"3.5"'),
        ("3", {"type": "number"}, "3"),
        ("1e999", {"type": "number"}, '"1e999"'),
        ("NaN", {"type": "number"}, '"NaN"'),
        ("3", {"type": ["integer", "string"]}, "3"),
        ('"3"', {"type": ["integer", "string"]}, '"\\"3\\""'),
        ("{}", {"$ref": "#/$defs/x"}, "{}"),
        ("false", {"enum": [True, False]}, "false"),
        ("3", {"type": 7, "anyOf": 3, "enum": "x"}, '"3"'),
        ("[" * 100_000, {"type": "array"}, '"' + "[" * 100_000 + '"'),
        ('["\\ud800"]', {"type": "array"}, '["?"]'),
        ("3", None, '"3"'),
        ("3", DEEP, '"3"'),
    ],
)
def test_a_value_becomes_what_the_schema_says(text: str, schema: object, expected: str) -> None:
    assert coerce(text, schema) == expected
