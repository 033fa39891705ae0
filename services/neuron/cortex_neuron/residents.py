"""The models on this node, and what has to happen next to match what the scheduler wants. Pure.

    absent --load--> LOADING --> READY --unwanted--> DRAINING --idle--> CLOSING --> absent
                        |          ^-----wanted again-----'                ^
                        '---unwanted, or its engine died (READY too)-------'

One model loads at a time, those that are still downloaded aside. Memory counts as free only after
CLOSING. A load that failed stays as a refusal and is tried again after a pause that doubles, or at
once when memory was freed, if it was for want of memory. All deadlines come from `now_s`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from cortex_proto.fleet import LoadRefused
from cortex_proto.ids import ModelId
from cortex_proto.placement import Assignment, Desired

RETRY_S = 2.0
RETRY_LIMIT_S = 120.0
DOWNLOADING = "downloading"
"""The stage of a load that takes nothing of this node but its network: it holds up no other load."""
STABLE_S = 60.0
"""A model that was ready for so long before it died has had no failures."""


class Phase(Enum):
    """Where in its life a resident is."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    CLOSING = "closing"


@dataclass(slots=True)
class Resident:
    """One model that has, or will soon have, memory of this node."""

    assignment: Assignment
    phase: Phase
    since_s: float
    """When this phase began."""
    stage: str = "starting"
    progress: float = 0.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """A load that failed, or an engine that died, and when to try again."""

    assignment: Assignment
    state: LoadRefused
    retry_at_s: float
    failures: int


@dataclass(frozen=True, slots=True)
class Load:
    """Begin to load this model."""

    assignment: Assignment
    because: str


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop the load of this model; say `closed` when nothing of it is left."""

    model: ModelId
    because: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Send this model no new requests; `decide` says when it can be closed."""

    model: ModelId
    because: str


@dataclass(frozen=True, slots=True)
class Revive:
    """This model was draining and takes requests again."""

    model: ModelId
    because: str


@dataclass(frozen=True, slots=True)
class Close:
    """End the processes of this model; say `closed` when its memory is free."""

    model: ModelId
    because: str


Action = Load | Abort | Drain | Revive | Close


class Residents:
    """What is on this node. Each method takes in one event; `decide` says what to do about it all."""

    def __init__(self) -> None:
        self.epoch = 0
        self._wanted: dict[ModelId, Assignment] = {}
        self._residents: dict[ModelId, Resident] = {}
        self._refusals: dict[ModelId, Refusal] = {}

    @property
    def residents(self) -> Mapping[ModelId, Resident]:
        """All that has memory here, in the order of their loads."""
        return self._residents

    def is_wanted(self, model: ModelId) -> bool:
        """Whether the scheduler wants `model` here."""
        return model in self._wanted

    def refusals(self, now_s: float) -> Mapping[ModelId, Refusal]:
        """What is wanted, could not be had, and is not due for another try."""
        return {
            model: refusal
            for model, refusal in self._refusals.items()
            if model not in self._residents and refusal.retry_at_s > now_s
        }

    def queued(self, now_s: float) -> tuple[ModelId, ...]:
        """What is wanted and waits for another load to end."""
        refused = self.refusals(now_s)
        return tuple(m for m in self._wanted if m not in self._residents and m not in refused)

    def is_leaving(self) -> bool:
        """Whether memory will become free without anyone asking."""
        return any(r.phase in {Phase.DRAINING, Phase.CLOSING} for r in self._residents.values())

    def want(self, desired: Desired) -> bool:
        """Take in the desired document; False if it comes from a deposed scheduler and is ignored."""
        if desired.epoch < self.epoch:
            return False
        self.epoch = desired.epoch
        self._wanted = {a.model.id: a for a in desired.assignments}
        for model, refusal in tuple(self._refusals.items()):
            if not _is_same(self._wanted.get(model), refusal.assignment):
                del self._refusals[model]
        return True

    def progressed(self, model: ModelId, stage: str, progress: float) -> None:
        """Take note of how far a load is."""
        if (resident := self._residents.get(model)) and resident.phase is Phase.LOADING:
            resident.stage, resident.progress = stage, progress

    def loaded(self, model: ModelId, now_s: float) -> None:
        """A load has succeeded; too late, if it is CLOSING already."""
        if self._residents[model].phase is Phase.LOADING:
            self._enter(model, Phase.READY, now_s)

    def refused(self, model: ModelId, state: LoadRefused, now_s: float) -> None:
        """A load has failed; it is CLOSING until `closed`."""
        resident = self._residents[model]
        if resident.phase is Phase.LOADING:
            self._note_failure(resident.assignment, state, now_s + self._pause_s(model))
        self._enter(model, Phase.CLOSING, now_s)

    def died(self, model: ModelId, because: str, now_s: float) -> None:
        """The engine of a loaded model is gone; it is CLOSING until `closed`.

        After the first death it is loaded again at once, after further ones with a pause.
        """
        resident = self._residents[model]
        if now_s - resident.since_s >= STABLE_S:
            self._refusals.pop(model, None)
        if resident.phase is not Phase.CLOSING and _is_same(self._wanted.get(model), resident.assignment):
            pause_s = self._pause_s(model) if model in self._refusals else 0.0
            self._note_failure(
                resident.assignment, LoadRefused(f"the engine died: {because}"), now_s + pause_s
            )
        self._enter(model, Phase.CLOSING, now_s)

    def closed(self, model: ModelId, now_s: float, *, freed_bytes: int) -> None:
        """Nothing of `model` is left; if that freed memory, refusals for want of it may be tried again."""
        del self._residents[model]
        if not freed_bytes:
            return
        for name, refusal in self._refusals.items():
            if name != model and refusal.state.need_bytes:
                self._refusals[name] = replace(refusal, retry_at_s=now_s)

    def decide(self, now_s: float, num_streams: Mapping[ModelId, int]) -> tuple[Action, ...]:
        """Say what to do now, and count it as begun. `num_streams` are the unfinished streams per model."""
        actions: list[Action] = []
        for model, resident in self._residents.items():
            if action := self._step(model, resident, num_streams.get(model, 0)):
                actions.append(action)
                self._begin(action, now_s)
        if load := self._next_load(now_s):
            actions.append(load)
            self._residents[load.assignment.model.id] = Resident(load.assignment, Phase.LOADING, now_s)
        return tuple(actions)

    def _step(self, model: ModelId, resident: Resident, num_streams: int) -> Action | None:
        is_wanted = _is_same(self._wanted.get(model), resident.assignment)
        match resident.phase:
            case Phase.LOADING if not is_wanted:
                return Abort(model, "it is not wanted any more")
            case Phase.READY if not is_wanted and not num_streams:
                return Close(model, "it is not wanted any more and has no requests")
            case Phase.READY if not is_wanted:
                return Drain(model, f"it is not wanted any more and has {num_streams} requests to finish")
            case Phase.DRAINING if is_wanted:
                return Revive(model, "it is wanted again")
            case Phase.DRAINING if not num_streams:
                return Close(model, "its last request has ended")
            case _:
                return None

    def _begin(self, action: Action, now_s: float) -> None:
        match action:
            case Abort(model=model) | Close(model=model):
                self._enter(model, Phase.CLOSING, now_s)
            case Drain(model=model):
                self._enter(model, Phase.DRAINING, now_s)
            case Revive(model=model):
                self._enter(model, Phase.READY, now_s)
            case Load():
                pass

    def _next_load(self, now_s: float) -> Load | None:
        if any(r.phase is Phase.LOADING and r.stage != DOWNLOADING for r in self._residents.values()):
            return None
        for model in self.queued(now_s):
            assignment, refusal = self._wanted[model], self._refusals.get(model)
            if refusal is None:
                return Load(assignment, assignment.because)
            return Load(assignment, f"try {refusal.failures + 1}, after: {refusal.state.because}")
        return None

    def _enter(self, model: ModelId, phase: Phase, now_s: float) -> None:
        resident = self._residents[model]
        resident.phase, resident.since_s = phase, now_s

    def _pause_s(self, model: ModelId) -> float:
        earlier = self._refusals.get(model)
        return min(RETRY_S * 2.0**earlier.failures, RETRY_LIMIT_S) if earlier else RETRY_S

    def _note_failure(self, assignment: Assignment, state: LoadRefused, retry_at_s: float) -> None:
        earlier = self._refusals.get(assignment.model.id)
        failures = earlier.failures + 1 if earlier else 1
        self._refusals[assignment.model.id] = Refusal(assignment, state, retry_at_s, failures)


def _is_same(wanted: Assignment | None, held: Assignment) -> bool:
    """Whether what is held is what is wanted; the reason for it does not count."""
    return wanted is not None and (wanted.model, wanted.devices) == (held.model, held.devices)
