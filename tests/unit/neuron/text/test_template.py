"""Tools, options and past turns reach the template; what it would swallow in silence is refused."""

import json

import pytest

from builders.tokenizers import byte_tokenizer
from cortex_neuron.text.template import Template
from cortex_neuron.text.tokenizer import codec
from cortex_proto.errors import BadRequestError
from cortex_proto.generation import Chat, ChatTurn, Tool, ToolCall

HELLO = (ChatTurn("user", "weather?"),)
SCHEMA = '{"type":"object","properties":{"city":{"type":"string"}}}'
WEATHER = Tool("weather", "Tells it.", SCHEMA)
SHOWN = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}"


def refusal(source: str, chat: Chat) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        Template(source).render(chat)
    return caught.value


def test_tools_reach_the_template_as_openai_writes_them() -> None:
    text = Template(SHOWN).render(Chat(HELLO, (WEATHER, Tool("time"))))

    weather, time = text.replace("}{", "}\n{").splitlines()
    function = {"name": "weather", "description": "Tells it.", "parameters": json.loads(SCHEMA)}
    assert json.loads(weather) == {"type": "function", "function": function}
    assert json.loads(time)["function"]["parameters"] == {"type": "object", "properties": {}}


@pytest.mark.parametrize("source", ["{{ messages[0].content }}", "{# tools #}{{ messages[0].role }}"])
def test_a_template_that_leaves_out_the_tools_is_refused(source: str) -> None:
    error = refusal(source, Chat(HELLO, (WEATHER,)))

    assert "does not show it the tool 'weather'" in str(error)
    assert error.param == "tools"


def test_tools_that_the_template_stumbles_over_are_refused() -> None:
    error = refusal("{{ tools[0].function.parameters.properties.zip.type }}", Chat(HELLO, (WEATHER,)))

    assert "refuses the conversation" in str(error)


def test_without_tools_the_template_sees_none() -> None:
    assert Template("{{ tools is none }}").render(Chat(HELLO)) == "True"


def test_a_model_may_have_a_template_of_its_own_for_tools() -> None:
    template = codec(byte_tokenizer(), {"default": "plain", "tool_use": SHOWN}).template
    assert template is not None

    assert template.render(Chat(HELLO)) == "plain"
    assert "weather" in template.render(Chat(HELLO, (WEATHER,)))


def test_options_reach_the_template_and_are_left_to_it_otherwise() -> None:
    source = "{% if enable_thinking is defined %}{{ enable_thinking }}{% else %}default{% endif %}"

    assert Template(source).render(Chat(HELLO)) == "default"
    assert Template(source).render(Chat(HELLO, template_options='{"enable_thinking": false}')) == "False"


@pytest.mark.parametrize(
    "name", ["messages", "tools", "chat_template", "conversations", "add_generation_prompt", "bos_token"]
)
def test_options_cannot_replace_the_conversation(name: str) -> None:
    template = Template("{{ messages }}", (("bos_token", "<s>"),))

    with pytest.raises(BadRequestError, match=name):
        template.render(Chat(HELLO, template_options=json.dumps({name: "x"})))


def test_past_thoughts_reach_the_template() -> None:
    turn = ChatTurn("assistant", "42", reasoning="hm")

    assert Template("{{ messages[0].reasoning_content }}").render(Chat((turn,))) == "hm"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].tool_calls[0].function.arguments.city }}",
        "{{ messages[0].tool_calls[0].function.arguments | tojson }}",
        "{{ 'args: ' + messages[0].tool_calls[0].function.arguments }}",
    ],
)
def test_past_arguments_are_objects_or_text_as_the_template_wants(source: str) -> None:
    turn = ChatTurn("assistant", "", (ToolCall("1", "weather", '{"city": "Ulm"}'),))

    assert "Ulm" in Template(source).render(Chat((turn,)))
