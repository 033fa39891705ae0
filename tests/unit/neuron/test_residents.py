"""From what is wanted and what is there to what happens next."""

from collections.abc import Mapping

import pytest

from cortex_neuron.residents import (
    DOWNLOADING,
    RETRY_S,
    STABLE_S,
    Abort,
    Action,
    Close,
    Drain,
    Load,
    Phase,
    Residents,
    Revive,
)
from cortex_proto.catalogue import Model
from cortex_proto.fleet import LoadRefused
from cortex_proto.ids import ModelId, NodeId
from cortex_proto.placement import Assignment, Desired

A, B = ModelId("a"), ModelId("b")
NO_ROOM = LoadRefused("needs 2 MiB on cpu:0, 1 MiB of 4 MiB free", need_bytes=2, free_bytes=1)
BROKEN = LoadRefused("no such file")


def assigned(model: ModelId, source: str = "x", because: str = "asked for") -> Assignment:
    return Assignment(Model(model, source), (0,), because)


def desired(*models: ModelId, epoch: int = 1, source: str = "x") -> Desired:
    return Desired(NodeId("n"), epoch, tuple(assigned(model, source) for model in models))


def wanting(*models: ModelId) -> Residents:
    residents = Residents()
    residents.want(desired(*models))
    return residents


def having(*models: ModelId) -> Residents:
    """All of them wanted and ready, since 0 s."""
    residents = wanting(*models)
    for model in models:
        decide(residents)
        residents.loaded(model, 0.0)
    return residents


def decide(
    residents: Residents, now_s: float = 0.0, streams: Mapping[ModelId, int] | None = None
) -> list[Action]:
    return list(residents.decide(now_s, streams or {}))


def phases(residents: Residents) -> dict[ModelId, Phase]:
    return {model: resident.phase for model, resident in residents.residents.items()}


def test_what_is_wanted_is_loaded_with_the_schedulers_reason() -> None:
    assert decide(wanting(A)) == [Load(assigned(A), "asked for")]


def test_models_load_one_after_the_other() -> None:
    residents = wanting(A, B)
    assert decide(residents) == [Load(assigned(A), "asked for")]
    assert decide(residents) == []
    assert residents.queued(0.0) == (B,)

    residents.loaded(A, 1.0)

    assert decide(residents) == [Load(assigned(B), "asked for")]


def test_a_download_holds_up_no_other_load() -> None:
    residents = wanting(A, B)
    decide(residents)

    residents.progressed(A, DOWNLOADING, 0.1)

    assert decide(residents) == [Load(assigned(B), "asked for")]


def test_being_told_twice_changes_nothing() -> None:
    residents = having(A)

    residents.want(desired(A, epoch=2))

    assert decide(residents) == []


def test_another_reason_for_the_same_model_is_no_change() -> None:
    residents = having(A)

    residents.want(Desired(NodeId("n"), 1, (assigned(A, because="another"),)))

    assert decide(residents) == []


def test_a_lower_epoch_is_ignored() -> None:
    residents = having(A)
    residents.want(desired(A, epoch=7))

    assert not residents.want(desired(epoch=6))

    assert decide(residents) == []
    assert residents.epoch == 7


def test_an_idle_model_that_is_not_wanted_is_closed_at_once() -> None:
    residents = having(A)
    residents.want(desired())

    assert decide(residents) == [Close(A, "it is not wanted any more and has no requests")]
    assert phases(residents) == {A: Phase.CLOSING}


def test_a_busy_model_that_is_not_wanted_finishes_its_requests_first() -> None:
    residents = having(A)
    residents.want(desired())

    assert decide(residents, streams={A: 2}) == [
        Drain(A, "it is not wanted any more and has 2 requests to finish")
    ]
    assert decide(residents, streams={A: 1}) == []
    assert decide(residents) == [Close(A, "its last request has ended")]


def test_a_draining_model_that_is_wanted_again_is_ready_again() -> None:
    residents = having(A)
    residents.want(desired())
    decide(residents, streams={A: 1})

    residents.want(desired(A))

    assert decide(residents) == [Revive(A, "it is wanted again")]
    assert phases(residents) == {A: Phase.READY}


def test_a_load_that_is_not_wanted_any_more_is_aborted() -> None:
    residents = wanting(A)
    decide(residents)
    residents.want(desired())

    assert decide(residents) == [Abort(A, "it is not wanted any more")]


def test_a_load_that_succeeds_after_its_abort_is_not_ready() -> None:
    residents = wanting(A)
    decide(residents)
    residents.want(desired())
    decide(residents)

    residents.loaded(A, 1.0)

    assert phases(residents) == {A: Phase.CLOSING}


def test_a_model_wanted_again_while_closing_is_loaded_once_it_is_gone() -> None:
    residents = having(A)
    residents.want(desired())
    decide(residents)
    residents.want(desired(A))
    assert decide(residents) == []

    residents.closed(A, 1.0, freed_bytes=1)

    assert decide(residents, 1.0) == [Load(assigned(A), "asked for")]


def test_a_changed_source_is_another_model() -> None:
    residents = having(A)

    residents.want(desired(A, source="y"))

    assert [type(action) for action in decide(residents)] == [Close]
    residents.closed(A, 1.0, freed_bytes=1)
    assert decide(residents, 1.0) == [Load(assigned(A, "y"), "asked for")]


def refuse(residents: Residents, model: ModelId, state: LoadRefused, now_s: float) -> None:
    residents.refused(model, state, now_s)
    residents.closed(model, now_s, freed_bytes=0)


def test_a_refused_load_is_told_and_tried_again_after_a_pause_that_doubles() -> None:
    residents = wanting(A)
    decide(residents)
    refuse(residents, A, BROKEN, 0.0)

    assert residents.refusals(0.0)[A].state == BROKEN
    assert decide(residents, RETRY_S - 0.1) == []
    assert decide(residents, RETRY_S) == [Load(assigned(A), "try 2, after: no such file")]
    refuse(residents, A, BROKEN, RETRY_S)
    assert decide(residents, 3 * RETRY_S - 0.1) == []
    assert decide(residents, 3 * RETRY_S) == [Load(assigned(A), "try 3, after: no such file")]


def test_a_refused_load_does_not_hold_up_others() -> None:
    residents = wanting(A, B)
    decide(residents)

    refuse(residents, A, BROKEN, 0.0)

    assert decide(residents) == [Load(assigned(B), "asked for")]


@pytest.mark.parametrize(("state", "loaded"), [(NO_ROOM, "a"), (BROKEN, None)])
def test_freed_memory_brings_back_only_what_wanted_memory(state: LoadRefused, loaded: str | None) -> None:
    residents = having(B)
    residents.want(desired(A, B))
    decide(residents)
    refuse(residents, A, state, 0.0)
    residents.want(desired(A))
    decide(residents)

    residents.closed(B, 0.5, freed_bytes=1)

    actions = decide(residents, 0.5)
    assert [a.assignment.model.id for a in actions if isinstance(a, Load)] == ([loaded] if loaded else [])


def test_two_models_that_do_not_fit_do_not_wake_each_other() -> None:
    residents = wanting(A, B)
    decide(residents)
    refuse(residents, A, NO_ROOM, 0.0)
    decide(residents)
    refuse(residents, B, NO_ROOM, 0.0)

    assert decide(residents, RETRY_S - 0.1) == []


def test_a_refusal_is_forgotten_when_the_scheduler_gives_up() -> None:
    residents = wanting(A)
    decide(residents)
    refuse(residents, A, BROKEN, 0.0)
    residents.want(desired())
    residents.want(desired(A))

    assert residents.refusals(0.0) == {}
    assert decide(residents) == [Load(assigned(A), "asked for")]


def test_after_its_first_death_a_model_is_loaded_again_at_once() -> None:
    residents = having(A)

    residents.died(A, "killed by SIGKILL", 1.0)
    residents.closed(A, 1.0, freed_bytes=1)

    assert residents.refusals(1.0) == {}
    assert decide(residents, 1.0) == [Load(assigned(A), "try 2, after: the engine died: killed by SIGKILL")]


def test_a_model_that_keeps_dying_is_loaded_with_pauses() -> None:
    residents = having(A)
    residents.died(A, "boom", 1.0)
    residents.closed(A, 1.0, freed_bytes=1)
    decide(residents, 1.0)
    residents.loaded(A, 2.0)

    residents.died(A, "boom", 3.0)
    residents.closed(A, 3.0, freed_bytes=1)

    assert decide(residents, 3.0) == []
    assert residents.refusals(3.0)[A].state.because == "the engine died: boom"
    assert decide(residents, 3.0 + 2 * RETRY_S)


def test_a_long_life_clears_the_record() -> None:
    residents = having(A)
    residents.died(A, "boom", 1.0)
    residents.closed(A, 1.0, freed_bytes=1)
    decide(residents, 1.0)
    residents.loaded(A, 2.0)

    residents.died(A, "boom", 2.0 + STABLE_S)
    residents.closed(A, 2.0 + STABLE_S, freed_bytes=1)

    assert decide(residents, 2.0 + STABLE_S)


def test_a_dead_model_that_was_draining_stays_away() -> None:
    residents = having(A)
    residents.want(desired())
    decide(residents, streams={A: 1})

    residents.died(A, "boom", 1.0)
    residents.closed(A, 1.0, freed_bytes=1)

    assert decide(residents, 100.0) == []
    assert residents.refusals(1.0) == {}


def test_memory_is_on_its_way_while_a_model_drains_or_closes() -> None:
    residents = having(A)
    assert not residents.is_leaving()

    residents.want(desired())
    decide(residents)

    assert residents.is_leaving()
