"""What `/fleet` shows: the last word of every process and node, for people."""

from collections.abc import Mapping

import msgspec

from cortex_metrics.aggregate import Heard, Numbers, Series, Source
from cortex_proto.fleet import Node
from cortex_proto.telemetry import Event


class SourceView(msgspec.Struct, frozen=True):
    """One process."""

    service: str
    instance: str
    seq: int
    age_s: float
    lost: int
    """Snapshots of it that never arrived; the next one healed each."""
    values: dict[str, float]
    """Its last snapshot by `name{label,...}`; of a histogram the number of observations."""


class NodeView(msgspec.Struct, frozen=True):
    """One node."""

    age_s: float
    node: Node


class FleetView(msgspec.Struct, frozen=True):
    """All that was heard last."""

    sources: list[SourceView]
    nodes: list[NodeView]
    events: list[Event]
    """Oldest first."""


def view_source(source: Source, heard: Heard, now_s: float) -> SourceView:
    """Show the last snapshot of one process."""
    service, instance = source
    return SourceView(
        service=service,
        instance=instance,
        seq=heard.seq,
        age_s=round(now_s - heard.at_s, 1),
        lost=heard.lost,
        values=_readable({**heard.counts, **heard.gauges}),
    )


def _readable(numbers: Mapping[Series, Numbers]) -> dict[str, float]:
    return {
        f"{name}{{{','.join(labels)}}}": sum(values[:-1] or values)
        for (name, labels), values in sorted(numbers.items())
    }
