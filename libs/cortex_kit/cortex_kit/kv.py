"""Key-value buckets: JetStream streams, spoken to in plain requests.

Not nats-py's own KV: its watchers go blind when a server restarts. A change is heard on the
subject that the server republishes it on, and read back by direct get.
"""

from dataclasses import dataclass
from typing import Any, Generic, Literal

import msgspec

from cortex_kit.bus import Bus
from cortex_kit.link import RawMessage
from cortex_proto.errors import BusError, CortexError
from cortex_proto.subjects import Key, M
from cortex_proto.wire import pack, unpack

_LIMIT_S = 5.0
_MARKER_S = 30
_NS = 1_000_000_000
_NOT_FOUND = "404"
_OTHER_CONFIG = 10058
_WRONG_REVISION = (10071, 10164)
_TOMBSTONE = ("KV-Operation", "Nats-Marker-Reason")


class RevisionConflictError(CortexError):
    """The key has changed since it was read, or exists already."""

    code = "revision_conflict"
    http_status = 409
    retryable = True


@dataclass(frozen=True, slots=True)
class Entry(Generic[M]):
    """A value, and the revision to hand to `Kv.update`."""

    value: M
    revision: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """How a bucket is to be kept."""

    name: str
    storage: Literal["file", "memory"]
    ttl_s: float | None
    """A key is forgotten so long after its last write; None: never."""
    history: int
    republish: str | None
    """Where each change is heard, ending in ".>"; a key that expires is heard too, with no payload."""


class _Refusal(msgspec.Struct, frozen=True):
    """Why JetStream says no."""

    code: int
    description: str = ""
    err_code: int = 0


class _Acknowledgement(msgspec.Struct, frozen=True):
    """What JetStream answers to a write or an API call."""

    seq: int = 0
    error: _Refusal | None = None


class Kv:
    """Typed access to buckets."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def ensure_bucket(self, bucket: Bucket) -> None:
        """Create a bucket unless it exists; if it exists in another shape, reshape it.

        Raises:
            BusError: JetStream is off, refuses, or does not answer.
        """
        stream = f"KV_{bucket.name}"
        config = msgspec.json.encode(_stream_config(stream, bucket))
        refusal = (await self._call(f"$JS.API.STREAM.CREATE.{stream}", config)).error
        if refusal is not None and refusal.err_code == _OTHER_CONFIG:
            refusal = (await self._call(f"$JS.API.STREAM.UPDATE.{stream}", config)).error
        if refusal is not None:
            raise BusError(f"bucket {bucket.name}: {refusal.description}")

    async def get(self, key: Key[M]) -> Entry[M] | None:
        """Read a key; None if it does not exist, was deleted, or has expired.

        Raises:
            BusError: the bucket is absent, or there is no answer.
        """
        raw = await self._last(key)
        if raw is None or _is_tombstone(raw):
            return None
        return _entry(raw, key.message)

    async def put(self, key: Key[M], value: M) -> int:
        """Write a key, whatever it was; the last writer wins. Returns the revision.

        Raises:
            PayloadTooLargeError: the value is over the server's limit.
            BusError: the bucket is absent, or there is no answer; then it may or may not be written.
        """
        return await self._write(key, pack(value), {})

    async def update(self, key: Key[M], value: M, *, revision: int) -> int:
        """Write a key if its revision is still this one; 0: if it does not exist. Returns the new revision.

        Raises:
            RevisionConflictError: it is not.
            PayloadTooLargeError: the value is over the server's limit.
            BusError: the bucket is absent, or there is no answer; then it may or may not be written.
        """
        payload = pack(value)
        try:
            return await self._write(key, payload, _expecting(revision))
        except RevisionConflictError:
            last = await self._last(key) if revision == 0 else None
            if last is None or not _is_tombstone(last):
                raise
        return await self._write(key, payload, _expecting(_revision(last)))

    async def delete(self, key: Key[M]) -> None:
        """Delete a key; it need not exist.

        Raises:
            BusError: the bucket is absent, or there is no answer.
        """
        await self._write(key, b"", {"KV-Operation": "DEL"})

    async def all(self, bucket: str, kind: Any) -> dict[str, Entry[Any]]:
        """Read every live key of a bucket whose values are all of this `kind`; at most 1,024 keys.

        Raises:
            BusError: the bucket is absent, there are too many keys, or there is no answer.
        """
        prefix = f"$KV.{bucket}."
        question = msgspec.json.encode({"multi_last": [f"{prefix}>"]})
        answers = await self._bus.request_many(
            f"$JS.API.DIRECT.GET.KV_{bucket}", question, timeout_s=_LIMIT_S
        )
        last = answers.pop()
        if last.status not in ("204", _NOT_FOUND):
            raise BusError(f"bucket {bucket}: {last.headers.get('Description', last.status)}")
        return {
            raw.headers["Nats-Subject"].removeprefix(prefix): _entry(raw, kind)
            for raw in answers
            if not _is_tombstone(raw)
        }

    async def _last(self, key: Key[M]) -> RawMessage | None:
        subject = f"$JS.API.DIRECT.GET.KV_{key.bucket}.{_subject(key)}"
        raw = await self._bus.request_raw(subject, b"", timeout_s=_LIMIT_S)
        if raw.status == _NOT_FOUND:
            return None
        if raw.status is not None:
            raise BusError(f"{key.bucket}/{key.name}: {raw.headers.get('Description', raw.status)}")
        return raw

    async def _write(self, key: Key[Any], payload: bytes, headers: dict[str, str]) -> int:
        acknowledgement = await self._call(_subject(key), payload, headers)
        if acknowledgement.error is None:
            return acknowledgement.seq
        if acknowledgement.error.err_code in _WRONG_REVISION:
            raise RevisionConflictError(f"{key.bucket}/{key.name}: {acknowledgement.error.description}")
        raise BusError(f"{key.bucket}/{key.name}: {acknowledgement.error.description}")

    async def _call(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None
    ) -> _Acknowledgement:
        raw = await self._bus.request_raw(subject, payload, headers, timeout_s=_LIMIT_S)
        try:
            return msgspec.json.decode(raw.payload, type=_Acknowledgement)
        except msgspec.DecodeError as error:
            raise BusError(f"the answer on {subject} cannot be read: {error}") from error


def _stream_config(stream: str, bucket: Bucket) -> dict[str, Any]:
    """Describe a bucket as the stream behind it. Source: NATS ADR-8, ADR-43 (markers)."""
    config: dict[str, Any] = {
        "name": stream,
        "subjects": [f"$KV.{bucket.name}.>"],
        "storage": bucket.storage,
        "max_msgs_per_subject": bucket.history,
        "discard": "new",
        "num_replicas": 1,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
    }
    if bucket.ttl_s is not None:
        ttl_ns = int(bucket.ttl_s * _NS)
        config |= {
            "max_age": ttl_ns,
            "duplicate_window": min(ttl_ns, 120 * _NS),
            "allow_msg_ttl": True,
            "subject_delete_marker_ttl": _MARKER_S * _NS,
        }
    if bucket.republish is not None:
        config["republish"] = {"src": f"$KV.{bucket.name}.>", "dest": bucket.republish}
    return config


def _subject(key: Key[Any]) -> str:
    return f"$KV.{key.bucket}.{key.name}"


def _expecting(revision: int) -> dict[str, str]:
    return {"Nats-Expected-Last-Subject-Sequence": str(revision)}


def _revision(raw: RawMessage) -> int:
    return int(raw.headers["Nats-Sequence"])


def _is_tombstone(raw: RawMessage) -> bool:
    return any(name in raw.headers for name in _TOMBSTONE)


def _entry(raw: RawMessage, kind: Any) -> Entry[Any]:
    return Entry(unpack(raw.payload, kind), _revision(raw))
