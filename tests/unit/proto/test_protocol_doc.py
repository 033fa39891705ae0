"""docs/protocol.md says what subjects.py says: every subject, every key, every message, every field."""

import hashlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from cortex_proto import errors, fleet, generation, placement, subjects, telemetry
from cortex_proto.stream import Digest
from cortex_proto.subjects import Call, Key, Topic
from cortex_proto.wire import Message

DOC = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()
STAND_INS = {
    "model": ("MODEL", "<mkey>"),
    "node": ("NODE", "<nid>"),
    "gateway": ("GATEWAY", "<gw>"),
    "stream": ("STREAM", "<sid>"),
    "service": ("SERVICE", "<service>"),
    "instance": ("INSTANCE", "<instance>"),
    "kind": ("KIND", "<kind>"),
}

Row = tuple[str, frozenset[str]]
"""A subject or key, and the names of the messages that travel there."""


def section(title: str) -> str:
    """The text below a heading of the second level, up to the next one."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", DOC, re.DOTALL | re.MULTILINE)
    return str(text)


def cells(text: str) -> Iterator[list[str]]:
    """The rows of the tables in `text`, cell by cell, without the heads."""
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def documented(title: str) -> set[Row]:
    return {(" ".join(quoted(row[0])), frozenset(quoted(row[1]))) for row in cells(section(title))}


def names(kind: Any) -> frozenset[str]:
    return frozenset(member.__name__ for member in (get_args(kind) or (kind,)))


def declared() -> Iterator[Topic[Any] | Call[Any, Any] | Key[Any] | str]:
    """All that subjects.py offers; functions are called with stand-ins for their parameters."""
    for name, value in vars(subjects).items():
        if inspect.isfunction(value) and value.__module__ == subjects.__name__:
            yield value(**{name: STAND_INS[name][0] for name in inspect.signature(value).parameters})
        elif isinstance(value, Topic | Call | Key) or (name.isupper() and str(value).startswith("cortex.")):
            yield value


def pattern(subject: str) -> str:
    for stand_in, placeholder in STAND_INS.values():
        subject = re.sub(rf"\b{stand_in}\b", placeholder, subject)
    return subject


def row(item: Topic[Any] | Call[Any, Any] | Key[Any] | str) -> Row:
    match item:
        case Topic(subject=subject, message=message):
            return pattern(subject), names(message)
        case Call(subject=subject, ask=ask, reply=reply):
            return pattern(subject), names(ask) | names(reply)
        case Key(bucket=bucket, name=name, message=message):
            return f"{bucket} {pattern(name)}", names(message)
        case _:
            return pattern(item), names(telemetry.Event) | {"Snapshot"}


def is_wild(subject: str) -> bool:
    return not {"*", ">"}.isdisjoint(subject.split("."))


def covers(wild: str, subject: str) -> bool:
    """Whether a NATS subscription to `wild` hears `subject`."""
    words = {"*": r"[^.]+", ">": ".+"}
    expression = r"\.".join(words.get(word, re.escape(word)) for word in wild.split("."))
    return re.fullmatch(expression, subject) is not None


DECLARED = list(declared())
ROWS = {row(item) for item in DECLARED if not isinstance(item, Key)}
KEYS = {row(item) for item in DECLARED if isinstance(item, Key)}
CONCRETE = {it for it in ROWS if not is_wild(it[0])}
WILD = ROWS - CONCRETE


def test_there_is_something_to_check() -> None:
    assert len(CONCRETE) >= 9
    assert len(KEYS) >= 4
    assert len(WILD) >= 3


def test_every_subject_is_documented_with_its_messages() -> None:
    assert CONCRETE - documented("Subjects") == set()


def test_every_documented_subject_is_one() -> None:
    strangers = {
        (subject, messages)
        for subject, messages in documented("Subjects") - CONCRETE
        if not any(covers(wild, subject) and heard == messages for wild, heard in WILD)
    }

    assert strangers == set()


@pytest.mark.parametrize(("wild", "messages"), sorted(WILD, key=str), ids=lambda it: str(it)[:30])
def test_whoever_listens_to_many_subjects_hears_a_documented_one(wild: str, messages: frozenset[str]) -> None:
    assert any(covers(wild, subject) and said == messages for subject, said in documented("Subjects"))


def test_the_keys_are_those_of_the_buckets() -> None:
    assert documented("Keys") == KEYS


def test_every_stand_in_is_explained() -> None:
    explained = {token for it in cells(section("Tokens of a subject")) for token in quoted(it[0])}
    used = {token for subject, _ in ROWS | KEYS for token in re.findall(r"<\w+>", subject)}

    assert used <= explained


MODULES = (errors, fleet, generation, placement, telemetry)
FIELDS = {
    name: kind.__struct_fields__
    for module in MODULES
    for name, kind in vars(module).items()
    if isinstance(kind, type)
    and issubclass(kind, Message | telemetry.Record)
    and kind not in (Message, telemetry.Record)
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_message_is_documented_with_its_fields(name: str) -> None:
    (it,) = [it for it in cells(section("Messages")) if name in quoted(" ".join(it))]

    assert [field for field in FIELDS[name] if field not in quoted(it[1])] == []


def test_every_documented_message_exists() -> None:
    titles = {name for it in cells(section("Messages")) for name in quoted(it[0])}

    assert titles - FIELDS.keys() == set()


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("Every {} s a gateway publishes", generation.LEASE_PERIOD_S),
        ("or {:g} s without any message", generation.NODE_SILENCE_LIMIT_S),
        ("no lease has named for {:g} s", generation.LEASE_LIMIT_S),
        ("or {:g} s of silence", generation.ACCEPT_LIMIT_S),
        ("every {:g} s and on change", fleet.NODE_PERIOD_S),
        ("forgotten {:g} s after", fleet.NODE_LIMIT_S),
    ],
)
def test_the_times_are_those_of_the_code(words: str, value: float) -> None:
    assert words.format(value) in re.sub(r"\s+", " ", DOC)


def test_the_example_of_a_digest_is_true() -> None:
    digest = Digest()
    digest.add(generation.TextDelta("Hello"))

    assert "`1:t5:Hello`" in DOC
    assert digest.text() == hashlib.blake2s(b"1:t5:Hello", digest_size=16).hexdigest()


def test_the_example_of_a_message_is_one() -> None:
    (example,) = re.findall(r'`(\{"type": .*?\})`', DOC)

    assert msgspec.json.decode(example, type=placement.Ensure).model == "Qwen/Qwen3-0.6B"
