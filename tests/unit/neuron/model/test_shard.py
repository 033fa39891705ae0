"""Ranks share what there is: nothing twice, nothing missing, and fused tensors region by region."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cortex_neuron.model.shard import Cut, Shard, check, regions
from cortex_proto.errors import LoadFailedError

worlds = st.sampled_from([1, 2, 3, 4, 8])


def indices(cut: Cut) -> list[int]:
    return [index for span in cut.spans for index in span]


def joined(cuts: list[Cut]) -> list[int]:
    return [index for cut in cuts for index in indices(cut)]


def ranks(world: int) -> list[Shard]:
    return [Shard(rank, world) for rank in range(world)]


@given(world=worlds, share=st.integers(1, 5), width=st.integers(1, 3))
def test_spans_of_all_ranks_make_up_the_whole_in_order(world: int, share: int, width: int) -> None:
    cuts = [shard.span(world * share, width) for shard in ranks(world)]

    assert joined(cuts) == list(range(world * share * width))
    assert {cut.size for cut in cuts} == {share * width}
    assert {cut.whole for cut in cuts} == {world * share * width}


@given(world=worlds, num=st.integers(1, 40))
def test_padded_spans_of_all_ranks_make_up_the_whole_within_equal_shares(world: int, num: int) -> None:
    cuts = [shard.padded(num) for shard in ranks(world)]

    assert joined(cuts) == list(range(num))
    assert all(cut.size <= shard.share(num) for cut, shard in zip(cuts, ranks(world), strict=True))


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "world"), [(8, 2, 4), (8, 2, 8), (8, 8, 2), (6, 3, 3)])
def test_each_query_head_finds_its_key_value_head_on_its_rank(
    num_heads: int, num_kv_heads: int, world: int
) -> None:
    for shard in ranks(world):
        queries = indices(shard.span(num_heads))
        held = indices(shard.kv_heads(num_kv_heads))
        group = len(queries) // len(held)

        found = [held[place // group] for place in range(len(queries))]

        assert found == [query * num_kv_heads // num_heads for query in queries]


def test_a_rank_of_many_holds_one_key_value_head_whole() -> None:
    assert [shard.kv_heads(2, 16) for shard in ranks(4)] == [
        Cut(32, (range(16),)),
        Cut(32, (range(16),)),
        Cut(32, (range(16, 32),)),
        Cut(32, (range(16, 32),)),
    ]


NUM_K, NUM_V, WIDTH = 4, 8, 3
FUSED = (2 * NUM_K + NUM_V) * WIDTH


def by_region(shard: Shard) -> Cut:
    k, v = shard.span(NUM_K, WIDTH), shard.span(NUM_V, WIDTH)
    return regions(k, k, v)


def uniform(shard: Shard) -> Cut:
    return shard.span(FUSED)


def fused_product(cut: Cut, shard: Shard) -> torch.Tensor:
    """Project by the fused [q | k | v], then weigh each of the rank's values by q * k of its key head."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(FUSED, 5, generator=generator)
    x = torch.randn(5, generator=generator)
    num_k, num_v = NUM_K // shard.world, NUM_V // shard.world
    q, k, v = (weight[indices(cut)] @ x).view(-1, WIDTH).tensor_split([num_k, 2 * num_k])
    return (q * k).sum(-1).repeat_interleave(num_v // num_k)[:, None] * v


@pytest.mark.parametrize("world", [2, 4])
def test_fused_regions_cut_one_by_one_give_every_rank_its_own_heads(world: int) -> None:
    whole = fused_product(by_region(Shard(0, 1)), Shard(0, 1))

    parts = [fused_product(by_region(shard), shard) for shard in ranks(world)]

    torch.testing.assert_close(torch.cat(parts), whole)
    assert {by_region(shard).whole for shard in ranks(world)} == {FUSED}


def test_regions_lie_one_behind_the_other() -> None:
    shard = Shard(1, 2)

    cut = regions(shard.span(4), shard.span(4), shard.span(8))

    assert cut == Cut(16, (range(2, 4), range(6, 8), range(12, 16)))


def test_a_uniform_cut_of_fused_regions_is_as_long_and_wrong() -> None:
    whole = fused_product(by_region(Shard(0, 1)), Shard(0, 1))

    parts = [fused_product(uniform(shard), shard) for shard in ranks(2)]

    assert [uniform(shard).size for shard in ranks(2)] == [by_region(shard).size for shard in ranks(2)]
    assert (torch.cat(parts) - whole).abs().max() > 0.1


@pytest.mark.parametrize(
    ("world", "heads", "columns", "kv_heads", "because"),
    [
        (2, 9, 8, 3, "9 query heads cannot be shared by 2 ranks"),
        (4, 8, 6, 4, "6 columns cannot be shared by 4 ranks"),
        (4, 12, 8, 6, "6 key/value heads cannot be shared by 4 ranks"),
        (6, 12, 12, 4, "4 key/value heads cannot be shared by 6 ranks"),
    ],
)
def test_an_uneven_world_is_refused_with_the_numbers(
    world: int, heads: int, columns: int, kv_heads: int, because: str
) -> None:
    with pytest.raises(LoadFailedError) as refused:
        check(world, {"query heads": heads, "columns": columns}, num_kv_heads=kv_heads)

    assert str(refused.value) == because


@pytest.mark.parametrize(("world", "heads", "kv_heads"), [(1, 9, 3), (3, 9, 3), (4, 8, 2), (8, 8, 2)])
def test_an_even_world_is_welcome(world: int, heads: int, kv_heads: int) -> None:
    check(world, {"query heads": heads}, num_kv_heads=kv_heads)
