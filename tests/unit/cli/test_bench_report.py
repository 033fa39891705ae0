"""The figures of a benchmark."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_cli.bench_report import HEADINGS, Report, Sample, level, quantile, rows, stream_rate


def sample(*texts_s: float, started_s: float = 0.0, tokens: int | None = None) -> Sample:
    return Sample(started_s, texts_s, 10, len(texts_s) if tokens is None else tokens)


FAILED = Sample(0.0, (0.5, 0.6), 0, 0, "the node was lost")


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, None),
        ([7], 0.5, 7),
        ([7], 0.99, 7),
        ([3, 1, 2], 0.5, 2),
        ([4, 3, 2, 1], 0.5, 2),
        (list(range(1, 101)), 0.99, 99),
        (list(range(1, 101)), 1.0, 100),
        ([5, 1], 0.0, 1),
    ],
)
def test_a_quantile_is_the_value_at_the_nearest_rank(
    values: list[float], share: float, expected: float | None
) -> None:
    assert quantile(values, share) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_quantile_was_observed_and_enough_values_do_not_exceed_it(
    values: list[float], share: float
) -> None:
    found = quantile(values, share)

    assert found is not None
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


def test_a_level_adds_up_its_streams() -> None:
    one = level(2, [sample(1.0, 1.1, 1.2), sample(2.5, 2.6, 2.9, started_s=2.0)], duration_s=3.0)

    assert (one.concurrency, one.requests, one.errors) == (2, 2, 0)
    assert (one.prompt_tokens, one.output_tokens) == (20, 6)
    assert one.tokens_per_s == 2.0
    assert (one.ttft_s.p50, one.ttft_s.p99) == (0.5, 1.0)
    assert one.inter_token_s.p50 == pytest.approx(0.1)
    assert one.inter_token_s.p99 == pytest.approx(0.3)
    assert one.stream_tokens_per_s.p50 == pytest.approx(5.0)


def test_a_failed_request_is_an_error_and_counts_nowhere_else() -> None:
    with_it = level(1, [sample(1.0, 1.1), FAILED], duration_s=2.0)
    without = level(1, [sample(1.0, 1.1)], duration_s=2.0)

    assert (with_it.requests, with_it.errors) == (2, 1)
    assert with_it.tokens_per_s == without.tokens_per_s
    assert (with_it.ttft_s, with_it.inter_token_s) == (without.ttft_s, without.inter_token_s)


def test_a_stream_of_pieces_that_hold_several_tokens_is_rated_by_its_tokens() -> None:
    assert stream_rate(sample(1.0, 2.0, tokens=11)) == 10.0


@pytest.mark.parametrize("texts_s", [(), (1.0,), (1.0, 1.0)])
def test_a_stream_without_a_span_has_no_rate(texts_s: tuple[float, ...]) -> None:
    assert stream_rate(sample(*texts_s)) is None


def test_the_table_gives_milliseconds_and_the_gain_over_the_first_level() -> None:
    first = level(1, [sample(0.25, 0.26)], duration_s=1.0)
    second = level(8, [sample(0.5, 0.52, tokens=6)], duration_s=1.0)

    table = [dict(zip(HEADINGS, row, strict=True)) for row in rows(Report("m", 64, (first, second)))]

    assert [row["TTFT p50 ms"] for row in table] == ["250", "500"]
    assert [row["token gap p50 ms"] for row in table] == ["10.0", "20.0"]
    assert [row["tok/s in all"] for row in table] == ["2.0", "6.0"]
    assert [row["gain"] for row in table] == ["1.00", "3.00"]


def test_a_level_where_everything_failed_has_no_figures_and_no_gain() -> None:
    nothing = level(1, [FAILED], duration_s=1.0)

    assert rows(Report("m", 64, (nothing,))) == [("1", "1", "1", "-", "-", "-", "-", "-", "0.0", "-")]
