"""What Prometheus reads is what was counted."""

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from cortex_metrics.exposition import exposition
from cortex_proto.telemetry import FIRST_TOKEN_S, METRICS, NODES_UP, REQUESTS

SERIES = ("Qwen/Qwen3-0.6B", "atlas")
LABELS = {"model": "Qwen/Qwen3-0.6B", "node": "atlas"}


def samples(text: bytes) -> list[Sample]:
    families = text_string_to_metric_families(text.decode())
    return [sample for family in families for sample in family.samples]


def test_every_metric_is_there_before_anything_was_counted() -> None:
    text = exposition({}).decode()

    assert samples(text.encode()) == []
    for metric in METRICS:
        assert f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n" in text


def test_counters_and_gauges_read_back_with_their_labels() -> None:
    text = exposition({(REQUESTS.name, SERIES): (7.0,), (NODES_UP.name, ()): (2.0,)})

    assert samples(text) == [
        Sample("cortex_requests_total", LABELS, 7.0),
        Sample("cortex_nodes_up", {}, 2.0),
    ]


def test_a_histogram_has_cumulative_buckets_a_sum_and_a_count() -> None:
    counts = (1.0, 2.0, *(0.0 for _ in FIRST_TOKEN_S.buckets[2:]), 3.0)

    found = samples(exposition({(FIRST_TOKEN_S.name, SERIES): (*counts, 400.5)}))

    buckets = [sample for sample in found if sample.name.endswith("_bucket")]
    assert [sample.value for sample in buckets] == [1.0, *(3.0 for _ in FIRST_TOKEN_S.buckets[1:]), 6.0]
    assert [float(sample.labels["le"]) for sample in buckets] == [*FIRST_TOKEN_S.buckets, float("inf")]
    assert Sample("cortex_time_to_first_token_seconds_sum", LABELS, 400.5) in found
    assert Sample("cortex_time_to_first_token_seconds_count", LABELS, 6.0) in found


def test_a_label_may_hold_any_character() -> None:
    odd = ('a"b\\c', "n\n1")

    (sample,) = samples(exposition({(REQUESTS.name, odd): (1.0,)}))

    assert sample.labels == {"model": 'a"b\\c', "node": "n\n1"}
