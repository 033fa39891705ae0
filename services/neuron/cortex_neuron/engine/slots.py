"""Which slot holds the states of which request."""

from collections.abc import Sequence

from cortex_neuron.engine.plan import PlanRow
from cortex_proto.ids import StreamId


class Slots:
    """Gives every request of a plan a slot from its first token until it is in no plan any more.

    All that run are in every plan, so who is absent has ended or lost its place; who lost it comes
    back without a past, and begins anew. Slot 0 is nobody's.
    """

    def __init__(self, num_slots: int) -> None:
        self._free = list(range(num_slots - 1, 0, -1))
        self._slot_of: dict[StreamId, int] = {}

    @property
    def num_free(self) -> int:
        """Slots that nobody has."""
        return len(self._free)

    def assign(self, rows: Sequence[PlanRow]) -> tuple[list[int], list[int]]:
        """Say the slot of each row, and which of these must be zeroed before the step."""
        for gone in self._slot_of.keys() - {row.id for row in rows}:
            self._free.append(self._slot_of.pop(gone))
        for row in rows:
            if row.id not in self._slot_of:
                assert row.past == 0, f"{row.id} has a past and no slot"
                self._slot_of[row.id] = self._free.pop()
        slots = [self._slot_of[row.id] for row in rows]
        return slots, [slot for row, slot in zip(rows, slots, strict=True) if row.past == 0]
