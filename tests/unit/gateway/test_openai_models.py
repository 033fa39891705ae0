import msgspec
import pytest

from cortex_gateway.dialects.openai_models import Models
from cortex_proto.catalogue import Catalogue, Cost, Limit, Model
from cortex_proto.errors import ModelUnknownError
from cortex_proto.fleet import Loading, Ready, Replica, ReplicaState
from cortex_proto.ids import ModelId, NodeId

M = ModelId("org/m")


def ready(context: int) -> Ready:
    return Ready(0, 0, max_waiting=8, idle_s=0, context=context)


def models(model: Model, **states: ReplicaState) -> Models:
    replicas = tuple(Replica(model.id, NodeId(node), state) for node, state in states.items())
    return Models(Catalogue((model,), {"short": model.id}), lambda _: replicas, created_s=7)


def test_what_is_not_known_is_left_out() -> None:
    assert msgspec.to_builtins(models(Model(M)).one(M)) == {
        "id": M,
        "object": "model",
        "created": 7,
        "owned_by": "cortex",
        "loaded": False,
        "locations": (),
    }


def test_what_the_catalogue_says_is_passed_on_and_a_price_of_nothing_is_a_price() -> None:
    model = Model(M, limit=Limit(context=4096, output=512), cost=Cost(0, 0), capabilities=("text",))

    entry = msgspec.json.decode(msgspec.json.encode(models(model).one(M)))

    assert entry["limit"] == {"context": 4096, "output": 512}
    assert entry["cost"] == {"input": 0.0, "output": 0.0}
    assert entry["capabilities"] == ["text"]
    assert entry["max_model_len"] == 4096


def test_the_tightest_replica_decides_how_long_a_prompt_may_be() -> None:
    entry = models(Model(M, limit=Limit(context=4096)), a=ready(2048), b=ready(1024)).one(M)

    assert entry.max_model_len == 1024


def test_a_model_that_loads_is_not_loaded() -> None:
    entry = models(Model(M), a=Loading("weights", 0.5)).one(M)

    assert not entry.loaded
    assert entry.locations[0].status == "loading"


def test_an_alias_is_an_entry_of_its_own() -> None:
    assert [entry.id for entry in models(Model(M)).all().data] == [M, "short"]


def test_an_unknown_model_is_an_error() -> None:
    with pytest.raises(ModelUnknownError, match="'nope' does not exist"):
        models(Model(M)).one("nope")
