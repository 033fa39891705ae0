"""`models.toml` is read whole or refused with the key and the model that are at fault."""

import pytest

from cortex_proto.catalogue import CatalogueError, Cost, Limit, Model, parse
from cortex_proto.ids import ModelId, NodeId

WHOLE = """
[aliases]
small = "Qwen/Qwen3-0.6B"

[[models]]
id = "Qwen/Qwen3-0.6B"
source = "models/qwen3-0.6b"
quant = "Q4_K_M"
vram_mb = 500
min_devices = 1
min_device_vram_mb = 4000
pinned_on = ["atlas"]
limit = {context = 8192, output = 2048}
cost = {input = 0.1, output = 0.0}
capabilities = ["chat"]
"""


def test_every_field_of_an_entry_is_read() -> None:
    catalogue = parse(WHOLE)

    assert catalogue.models == (
        Model(
            id=ModelId("Qwen/Qwen3-0.6B"),
            source="models/qwen3-0.6b",
            quant="Q4_K_M",
            vram_mb=500,
            min_device_vram_mb=4000,
            pinned_on=("atlas",),
            limit=Limit(context=8192, output=2048),
            cost=Cost(input=0.1, output=0.0),
            capabilities=("chat",),
        ),
    )


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "small"])
def test_a_model_is_found_by_its_id_and_by_an_alias(name: str) -> None:
    model = parse(WHOLE).get(name)

    assert model is not None
    assert model.id == "Qwen/Qwen3-0.6B"


def test_a_name_that_is_not_listed_finds_nothing() -> None:
    assert parse(WHOLE).get("qwen/qwen3-0.6b") is None


@pytest.mark.parametrize(
    ("keys", "priority"),
    [("", 100), ('pinned_on = ["atlas"]', 1000), ('pinned_on = ["atlas"]\nresidency_priority = 7', 7)],
)
def test_a_pinned_model_has_a_high_priority_unless_it_names_one(keys: str, priority: int) -> None:
    (model,) = parse(f'[[models]]\nid = "a"\n{keys}').models

    assert model.priority == priority


def test_a_model_is_pinned_where_it_says_so_alone() -> None:
    (model,) = parse(WHOLE).models

    assert model.is_pinned_on(NodeId("atlas"))
    assert not model.is_pinned_on(NodeId("titan"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[models]]\nid = "a"\nvram = 3', ["'a'", "unknown key `vram`"]),
        (
            '[[models]]\nid = "a"\n[[models]]\nid = "b"\nlimit = {ctx = 3}',
            ["'b'", "`ctx`", "models[1].limit"],
        ),
        ('[[models]]\nid = "a"\nmin_devices = "two"', ["'a'", "min_devices", "`int`"]),
        ('[[models]]\nid = "a"\ncost = {input = 1}', ["'a'", "`output`", "cost"]),
        ("[[models]]\nvram_mb = 3", ["`id`", "models[0]"]),
        ('[[models]]\nid = "a"\n[[models]]\nid = "a"', ["'a'", "twice"]),
        ('[[models]]\nid = "a"\nmin_devices = 0', ["'a'", "min_devices"]),
        ('[[models]]\nid = ""', ["''", "1 to 512 bytes"]),
        ('[aliases]\nx = "b"\n[[models]]\nid = "a"', ["'x'", "'b'", "not listed"]),
        ('[aliases]\na = "a"\n[[models]]\nid = "a"', ["'a'", "also the id"]),
        ('[aliases]\n"" = "a"\n[[models]]\nid = "a"', ["''", "1 to 512 bytes"]),
        ('[model]\nid = "a"', ["unknown key `model`"]),
        ("models = 3", ["`models`", "`array`"]),
        ("[[models]", ["line 1"]),
    ],
)
def test_a_mistake_is_refused_by_name(text: str, words: list[str]) -> None:
    with pytest.raises(CatalogueError) as caught:
        parse(text)

    assert [word for word in words if word not in str(caught.value)] == []
