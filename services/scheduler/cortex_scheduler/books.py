"""The scheduler's documents in KV: its epoch, the catalogue, and what should run on each node.

All are written by compare-and-set, so two schedulers never mix their decisions: who takes office
raises the epoch and rewrites every document, and the other's next write fails.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from cortex_kit.buckets import NODES, PLACE
from cortex_kit.kv import Kv, RevisionConflictError
from cortex_proto import subjects
from cortex_proto.catalogue import Catalogue, Model
from cortex_proto.errors import UnavailableError
from cortex_proto.fleet import Node
from cortex_proto.ids import ModelId, NodeId
from cortex_proto.placement import Assignment, Desired, Epoch
from cortex_proto.wire import unpack

_DESIRED = "desired."
_MAX_TRIES = 5


class DeposedError(UnavailableError):
    """Another scheduler has taken office; this one must not decide any more."""


@dataclass(frozen=True, slots=True)
class _Page:
    """One desired document, as KV has it."""

    document: Desired
    revision: int


class Books:
    """The documents as last read or written. Owned by one task."""

    def __init__(self, kv: Kv, catalogue: Catalogue) -> None:
        self.epoch = 0
        self._kv = kv
        self._catalogue = catalogue
        self._pages: dict[NodeId, _Page] = {}

    @property
    def desired(self) -> Mapping[NodeId, Desired]:
        """What should run on each node."""
        return {node: page.document for node, page in self._pages.items()}

    def holders(self, model: ModelId) -> tuple[NodeId, ...]:
        """Return the nodes that `model` is assigned to, dead ones included."""
        documents = sorted(self.desired.items())
        return tuple(n for n, d in documents if any(a.model.id == model for a in d.assignments))

    async def open(self) -> None:
        """Take office at the start, or make good after a reconnect what the server has lost.

        Raises:
            DeposedError: another scheduler took office meanwhile.
            BusError: KV does not answer; call again.
        """
        await self._kv.ensure_bucket(PLACE)
        await self._kv.ensure_bucket(NODES)
        if self.epoch == 0:
            await self._raise_epoch(lambda now: now + 1)
        else:
            await self._raise_epoch(lambda now: max(now, self.epoch))
        await self._kv.put(subjects.CATALOGUE, self._catalogue)
        await self._restate()

    async def are_lost(self) -> bool:
        """Whether the server does not have our epoch any more, so that `open` must make it good.

        Raises:
            DeposedError: another scheduler took office.
            BusError: KV does not answer.
        """
        _, epoch = await self._check_office()
        return epoch != self.epoch

    async def nodes(self) -> Iterable[Node]:
        """Read what the nodes say of themselves.

        Raises:
            BusError: KV does not answer.
        """
        entries = await self._kv.all(NODES.name, Node)
        return [e.value for e in entries.values()]

    async def pass_epoch(self, seen: int) -> None:
        """Rise above an epoch that a node has seen: it would ignore us. The bucket was wiped, then.

        Raises:
            DeposedError: no, there is another scheduler in office.
            BusError: KV does not answer.
        """
        await self._raise_epoch(lambda now: max(now, seen) + 1)
        await self._restate()

    async def write(self, node: NodeId, assignments: Iterable[Assignment]) -> None:
        """Say what should run on `node`.

        Raises:
            DeposedError: another scheduler is in office.
            RevisionConflictError: the document was not as it stands here; now it is, decide again.
            BusError: KV does not answer; the document may or may not be written.
        """
        page = self._pages.get(node)
        document = Desired(node, self.epoch, tuple(assignments))
        try:
            revision = await self._kv.update(
                subjects.desired(node), document, revision=page.revision if page else 0
            )
        except RevisionConflictError:
            await self._check_office()
            await self._load()
            raise
        self._pages[node] = _Page(document, revision)

    async def _raise_epoch(self, choose: Callable[[int], int]) -> None:
        """Write the epoch that `choose` makes of the one in KV; both 0 if there is none."""
        for _ in range(_MAX_TRIES):
            revision, now = await self._check_office()
            epoch = choose(now)
            try:
                if epoch != now:
                    await self._kv.update(subjects.EPOCH, Epoch(epoch), revision=revision)
            except RevisionConflictError:
                continue
            self.epoch = epoch
            return
        raise UnavailableError("too many schedulers take office at once")

    async def _check_office(self) -> tuple[int, int]:
        """Return the revision and the epoch in KV, unless somebody else raised it."""
        entry = await self._kv.get(subjects.EPOCH)
        if entry is None:
            return 0, 0
        if self.epoch and entry.value.epoch > self.epoch:
            raise DeposedError(
                f"a scheduler with epoch {entry.value.epoch} took office; ours is {self.epoch}"
            )
        return entry.revision, entry.value.epoch

    async def _load(self) -> None:
        """Read all desired documents as they are."""
        entries = await self._kv.all(PLACE.name, msgspec.Raw)
        self._pages = {}
        for name, entry in entries.items():
            if name.startswith(_DESIRED):
                document: Desired = unpack(bytes(entry.value), Desired)
                self._pages[document.node] = _Page(document, entry.revision)

    async def _restate(self) -> None:
        """Read all desired documents, and write again those of another epoch and those that KV has lost."""
        remembered = self.desired
        await self._load()
        for node, document in {**remembered, **self.desired}.items():
            current = Desired(node, self.epoch, tuple(self._current(document.assignments)))
            if current != self.desired.get(node):
                await self.write(node, current.assignments)

    def _current(self, assignments: Iterable[Assignment]) -> Iterable[Assignment]:
        for assignment in assignments:
            if model := self._find(assignment.model.id):
                yield msgspec.structs.replace(assignment, model=model)

    def _find(self, model: ModelId) -> Model | None:
        return next((m for m in self._catalogue if m.id == model), None)
