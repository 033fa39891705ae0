"""One example of every message, with every field set: what the golden files were written from."""

from cortex_proto.catalogue import Catalogue, Cost, Limit, Model
from cortex_proto.errors import Failed
from cortex_proto.fleet import Device, Draining, Loading, LoadRefused, Node, Ready, Replica, Share, Unloaded
from cortex_proto.generation import (
    Accepted,
    Cancel,
    Chat,
    ChatTurn,
    Finished,
    Frame,
    Generate,
    JsonSchema,
    Lease,
    LeaseHeld,
    Limits,
    ReasoningDelta,
    Regex,
    Sampling,
    Step,
    Text,
    TextDelta,
    Timing,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from cortex_proto.ids import InstanceId, ModelId, NodeId, RequestId, StreamId
from cortex_proto.placement import (
    AskStatus,
    Assignment,
    Desired,
    Ensure,
    Epoch,
    FleetStatus,
    MakeRoom,
    ModelStatus,
    NoVictims,
    Pending,
    Placed,
    Resident,
    Victims,
)
from cortex_proto.telemetry import (
    Decided,
    Histogram,
    LoadFailed,
    ModelLoaded,
    ModelUnloaded,
    Record,
    RequestDone,
    Snapshot,
    Value,
)
from cortex_proto.wire import Message

ATLAS = NodeId("atlas")
GATEWAY = InstanceId("gateway-7f3a")
REQUEST = RequestId("5b0e9f2c5b0e9f2c5b0e9f2c5b0e9f2c")
STREAM = StreamId(f"{REQUEST}-0")
SMALL = ModelId("Qwen/Qwen3-0.6B")
AT = "2026-09-01T12:00:00Z"

MODEL = Model(
    id=SMALL,
    source="models/qwen3-0.6b",
    quant="Q4_K_M",
    vram_mb=500,
    min_devices=2,
    min_device_vram_mb=4000,
    pinned_on=("atlas",),
    residency_priority=7,
    limit=Limit(context=8192, input=6144, output=2048),
    cost=Cost(input=0.5, output=1.5, cache_read=0.25, cache_write=0.75),
    capabilities=("chat",),
)
CATALOGUE = Catalogue(models=(MODEL,), aliases={"small": SMALL})

TOOL_CALL = ToolCall(id="call_1", name="weather", arguments='{"city": "Oslo"}')
TOOL = Tool(name="weather", description="Tells it.", parameters='{"type": "object"}')
TURN = ChatTurn(role="assistant", content="h\u00e9llo", tool_calls=(TOOL_CALL,), tool_call_id="call_0")
CHAT = Chat(turns=(ChatTurn(role="user", content="Weather?"), TURN))
SAMPLING = Sampling(temperature=0.5, top_p=0.75, top_k=40, seed=1234)
LIMITS = Limits(max_tokens=64, stop=("\n\n",), ignore_eos=True)
USAGE = Usage(prompt_tokens=20, output_tokens=300, cached_tokens=16, reasoning_tokens=100)
TIMING = Timing(queue_s=0.5, prefill_s=0.25, decode_s=1.5)
ACCEPTED = Accepted(node=ATLAS)
TEXT_DELTA = TextDelta(text=" world")
FAILED = Failed(code="node_lost", message="atlas has gone", retryable=True)
FRAMES = (Frame(STREAM, 0, ACCEPTED), Frame(STREAM, 1, TEXT_DELTA))

DEVICE = Device(0, "cuda", "RTX 5090", total_bytes=34_000_000_000, free_bytes=9, compute_capability="12.0")
SHARE = Share(device=0, bytes=524_288_000)
READY = Ready(running=3, waiting=1, max_waiting=128, idle_s=0.0, context=8192)
REPLICA = Replica(model=SMALL, node=ATLAS, state=READY, shares=(SHARE,))
NODE = Node(
    id=ATLAS,
    incarnation=InstanceId("neuron-91c4"),
    hostname="atlas.lab",
    os="Linux",
    kernel="6.12",
    version="0.1.0",
    devices=(DEVICE,),
    replicas=(REPLICA,),
    epoch=3,
)
ASSIGNMENT = Assignment(model=MODEL, devices=(0, 1), because="it is the node with most room")
RESIDENT = Resident(model=SMALL, bytes=524_288_000, priority=100, pinned=False, busy=True, idle_s=12.5)
MODEL_STATUS = ModelStatus(model=MODEL, nodes=(ATLAS,), because="it is pinned there")

MESSAGES: tuple[Message, ...] = (
    FAILED,
    TOOL_CALL,
    TURN,
    TOOL,
    CHAT,
    Text(text="Once upon"),
    JsonSchema(schema='{"type": "object"}'),
    Regex(pattern="[a-z]+"),
    SAMPLING,
    LIMITS,
    Generate(REQUEST, STREAM, GATEWAY, SMALL, CHAT, SAMPLING, LIMITS, budget_ms=30_000),
    ACCEPTED,
    TEXT_DELTA,
    ReasoningDelta(text="Hmm"),
    ToolCallDelta(index=1, arguments='{"ci', id="call_1", name="weather"),
    USAGE,
    TIMING,
    Finished("stop", USAGE, TIMING, digest="00ff00ff00ff00ff00ff00ff00ff00ff", stop="\n\n"),
    Step(frames=FRAMES),
    Lease(gateway=GATEWAY, streams=(STREAM,)),
    LeaseHeld(sent={STREAM: 17}),
    Cancel(stream=STREAM),
    DEVICE,
    SHARE,
    Loading(stage="weights", progress=0.5),
    READY,
    Draining(running=2),
    LoadRefused(because="needs 9 GiB, 2 GiB are free", need_bytes=9_663_676_416, free_bytes=2_147_483_648),
    Unloaded(),
    REPLICA,
    NODE,
    ASSIGNMENT,
    Desired(node=ATLAS, epoch=3, assignments=(ASSIGNMENT,)),
    Epoch(epoch=3),
    Ensure(model=SMALL),
    Placed(node=ATLAS, because="it is ready there"),
    Pending(because="all that could leave is busy"),
    RESIDENT,
    MakeRoom(ATLAS, incoming=SMALL, priority=100, need_bytes=1024, residents=(RESIDENT,)),
    Victims(models=(SMALL,), because="idle for 12.5 s, the longest"),
    NoVictims(because="all are busy", busy=True),
    AskStatus(),
    MODEL_STATUS,
    FleetStatus(epoch=3, nodes=(NODE,), models=(MODEL_STATUS,)),
)
"""Everything that travels as MessagePack."""

LABELS = {"model": SMALL, "node": ATLAS}
RECORDS: tuple[Record, ...] = (
    Snapshot(
        service="gateway",
        instance=GATEWAY,
        seq=4,
        values=(Value("cortex_requests_total", 7, LABELS),),
        histograms=(Histogram("cortex_load_seconds", (1,) + (0,) * 13, 0.0625, LABELS),),
    ),
    RequestDone(
        request=REQUEST,
        model=SMALL,
        node=ATLAS,
        dialect="openai_chat",
        stream=True,
        outcome="stop",
        prompt_tokens=20,
        output_tokens=300,
        cached_tokens=16,
        cold_start=False,
        queue_s=0.5,
        ttft_s=0.75,
        tokens_per_s=40.5,
        latency_s=8.25,
        attempts=1,
        at=AT,
    ),
    ModelLoaded(model=SMALL, node=ATLAS, seconds=2.5, bytes=524_288_000, at=AT),
    ModelUnloaded(model=SMALL, node=ATLAS, at=AT),
    LoadFailed(model=SMALL, node=ATLAS, because="no such file", at=AT),
    Decided(model=SMALL, node=ATLAS, verb="place", because="it is the node with most room", epoch=3, at=AT),
)
"""Everything that travels as JSON."""
