"""The two KV buckets of a fleet; the scheduler makes them."""

from cortex_kit.kv import Bucket
from cortex_proto.fleet import NODE_LIMIT_S
from cortex_proto.subjects import NODES as NODES_NAME
from cortex_proto.subjects import PLACE as PLACE_NAME

PLACE = Bucket(PLACE_NAME, storage="file", ttl_s=None, history=5, republish="cortex.place.>")
"""What should run where; the scheduler alone writes it."""

NODES = Bucket(NODES_NAME, storage="memory", ttl_s=NODE_LIMIT_S, history=1, republish="cortex.node.>")
"""What the nodes say of themselves; forgotten NODE_LIMIT_S after the last word."""
