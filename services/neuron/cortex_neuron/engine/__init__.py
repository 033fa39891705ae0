"""The engine: rank processes that schedule, compute and sample; and the cluster that owns them."""
