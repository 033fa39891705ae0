"""The wire does not change by accident, and any MessagePack or JSON library can speak it.

The files in golden/ are the contract: `bytes` is what crosses the bus, in hex, `plain` what a
library that knows nothing of cortex reads there. A new message needs a new file; to write the files
that are missing, run this module as a script. Change one that exists only with the protocol.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from contract.samples import CATALOGUE, MESSAGES, RECORDS
from cortex_proto import errors, fleet, generation, placement
from cortex_proto.catalogue import Catalogue
from cortex_proto.telemetry import Record
from cortex_proto.wire import Message, from_json, pack, to_json, unpack

GOLDEN = Path(__file__).parent / "golden"
PACKED: tuple[Message | Catalogue, ...] = (*MESSAGES, CATALOGUE)
MODULES = (errors, fleet, generation, placement)


def golden_of(message: object) -> dict[str, Any]:
    """Read the golden file of a message's kind."""
    found: dict[str, Any] = json.loads((GOLDEN / f"{type(message).__name__}.json").read_text())
    return found


def kinds_below(base: type[Any]) -> Iterator[type[Any]]:
    """Every subclass of `base` that cortex_proto itself defines."""
    kind: type[Any]
    for kind in base.__subclasses__():
        if kind.__module__.startswith("cortex_proto."):
            yield kind
        yield from kinds_below(kind)


def name_of(message: object) -> str:
    return type(message).__name__


@pytest.mark.parametrize("message", PACKED, ids=name_of)
def test_a_message_is_written_as_it_always_was(message: Message) -> None:
    assert pack(message).hex() == golden_of(message)["bytes"]


@pytest.mark.parametrize("message", PACKED, ids=name_of)
def test_a_golden_message_is_read_whole(message: Message) -> None:
    payload = bytes.fromhex(golden_of(message)["bytes"])

    assert unpack(payload, type(message)) == message


@pytest.mark.parametrize("message", PACKED, ids=name_of)
def test_plain_msgpack_reads_and_writes_every_message(message: Message) -> None:
    golden = golden_of(message)
    payload = bytes.fromhex(golden["bytes"])

    plain = msgpack.unpackb(payload)

    assert plain == golden["plain"]
    assert msgpack.packb(plain) == payload


@pytest.mark.parametrize("record", RECORDS, ids=name_of)
def test_a_record_is_json_as_it_always_was(record: Record) -> None:
    golden = golden_of(record)

    assert json.loads(to_json(record)) == golden["plain"]
    assert from_json(json.dumps(golden["plain"]).encode(), type(record)) == record


@pytest.mark.parametrize(
    "kind", [*kinds_below(Message), *kinds_below(Record)], ids=lambda kind: kind.__name__
)
def test_every_kind_of_message_has_a_golden_file(kind: type) -> None:
    assert (GOLDEN / f"{kind.__name__}.json").exists()
    assert kind in {type(message) for message in (*MESSAGES, *RECORDS)}


def test_no_golden_file_is_left_behind() -> None:
    known = {name_of(message) for message in (*PACKED, *RECORDS)}

    assert {path.stem for path in GOLDEN.glob("*.json")} == known


@pytest.mark.parametrize("message", MESSAGES, ids=name_of)
def test_a_message_of_a_newer_release_is_understood(message: Message) -> None:
    plain = golden_of(message)["plain"] | {"invented_later": [1, {"a": None}]}

    assert unpack(msgpack.packb(plain), type(message)) == message


def test_the_kinds_come_from_every_module_that_defines_any() -> None:
    assert {kind.__module__ for kind in kinds_below(Message)} == {module.__name__ for module in MODULES}


def write_missing() -> None:
    """Write the golden files that do not exist yet."""
    for message in PACKED:
        payload = pack(message)
        write(message, {"bytes": payload.hex(), "plain": msgpack.unpackb(payload)})
    for record in RECORDS:
        write(record, {"plain": json.loads(to_json(record))})


def write(message: object, golden: dict[str, Any]) -> None:
    """Write one golden file, unless it is there."""
    path = GOLDEN / f"{name_of(message)}.json"
    if not path.exists():
        path.write_text(json.dumps(golden, indent=1) + "\n")
        sys.stdout.write(f"wrote {path.name}\n")


if __name__ == "__main__":
    write_missing()
