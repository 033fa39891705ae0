"""Payloads, made legible."""

import msgspec
import pytest

from cortex_cli.tap import legible


@pytest.mark.parametrize(
    ("payload", "line"),
    [
        (b'{"a": 1,\n "b": [true]}', '{"a":1,"b":[true]}'),
        (msgspec.msgpack.encode({"type": "Lease", "streams": ["x"]}), '{"type":"Lease","streams":["x"]}'),
        (msgspec.msgpack.encode({"raw": b"\x00\xff"}), '{"raw":"AP8="}'),
        (b"\xc1\xc1", "b'\\xc1\\xc1'"),
        (b"", "b''"),
    ],
)
def test_json_and_messagepack_become_one_line_of_json(payload: bytes, line: str) -> None:
    assert legible(payload) == line
