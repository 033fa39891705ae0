"""Computes a plan: packs it for the model, runs it, samples. Knows nothing of requests."""

from typing import Self

import torch
from torch import Tensor

from cortex_neuron.engine.choosing import Logprobs
from cortex_neuron.engine.messages import LoadOptions
from cortex_neuron.engine.plan import Plan
from cortex_neuron.engine.sample import logprobs, sample
from cortex_neuron.model.batch import Batch
from cortex_neuron.model.causal import CausalModel
from cortex_neuron.model.checkpoint import OnProgress
from cortex_neuron.model.group import Group
from cortex_neuron.model.kv import KvPool
from cortex_neuron.model.load import load
from cortex_neuron.model.spec import PAGE, ModelSpec, Step, kv_page_bytes
from cortex_proto.errors import LoadFailedError
from cortex_proto.ids import StreamId


class Runner:
    """A model, or a rank's part of it, and what it remembers, on one device."""

    def __init__(self, model: CausalModel, kv: KvPool, device: torch.device) -> None:
        self.spec: ModelSpec = model.spec
        self.num_pages = kv.num_pages
        self._model = model
        self._kv = kv
        self._device = device

    @classmethod
    def load(cls, options: LoadOptions, group: Group, on_progress: OnProgress) -> Self:
        """Load the model, and make room for keys and values.

        Raises:
            LoadFailedError: the model cannot be loaded, or `kv_bytes` is not enough for one page.
        """
        device = torch.device(options.devices[group.shard.rank])
        dtype = getattr(torch, options.dtype)
        model = load(options.path, device=device, dtype=dtype, on_progress=on_progress, group=group)
        num_pages = num_pages_of(model.spec, options)
        num_slots = Step(options.max_batch).num_slots
        kv = KvPool(
            model.spec, group.shard, num_pages=num_pages, num_slots=num_slots, dtype=dtype, device=device
        )
        runner = cls(model, kv, device)
        runner.warm_up()
        return runner

    def step(self, plan: Plan) -> tuple[list[int], dict[StreamId, Logprobs]]:
        """Run `plan`; returns one token for each of its rows that draws, in order, and logprobs if asked."""
        draws = [row.draw for row in plan.rows if row.draw is not None]
        logits_RV = self.compute(plan)[: len(draws)]
        sampled = sample(logits_RV, draws)
        return sampled, _logprobs(plan, logits_RV, sampled)

    def compute(self, plan: Plan) -> Tensor:
        """Run the model; of several ranks all must, and only the leader gets the logits_RV."""
        states = self._kv.states
        for slot in plan.zeros:
            states.zero(slot)
        for source, target in plan.copies:
            states.copy(source, target)
        rows = [(row.tokens, row.past, row.pages) for row in plan.rows]
        batch = Batch.of(rows, self._device, [row.slot for row in plan.rows])
        logits_RV: Tensor = self._model(batch, self._kv)
        for save in plan.saves:
            states.copy(save.slot, save.snapshot)
        return logits_RV

    def warm_up(self) -> None:
        """Compute one token in the first page, before anybody has it: what does not work fails here."""
        self._model(Batch.of([([0], 0, [0])], self._device), self._kv).argmax(dim=-1).tolist()

    def check_device(self) -> None:
        """Use the device once and wait for it.

        Raises:
            RuntimeError: it does not work any more; on CUDA an illegal access is never forgotten.
        """
        torch.zeros(1, device=self._device).item()


def _logprobs(plan: Plan, logits_RV: Tensor, sampled: list[int]) -> dict[StreamId, Logprobs]:
    """Gather the logprobs of those rows that ask for them."""
    drawing = (row for row in plan.rows if row.draw is not None)
    asking = [
        (place, row.id, count)
        for place, row in enumerate(drawing)
        if row.draw is not None and (count := row.draw.choosing.logprobs) is not None
    ]
    if not asking:
        return {}
    places, ids, counts = zip(*asking, strict=True)
    told = logprobs(logits_RV[list(places)], [sampled[place] for place in places], counts)
    return dict(zip(ids, told, strict=True))


def num_pages_of(spec: ModelSpec, options: LoadOptions) -> int:
    """Count the pages that `kv_bytes` hold, no more than the largest batch could ever fill.

    Raises:
        LoadFailedError: not even one.
    """
    page_bytes = kv_page_bytes(spec, options.dtype, options.world)
    num_pages = options.kv_bytes // page_bytes
    if num_pages < 1:
        raise LoadFailedError(
            f"{options.kv_bytes} bytes for keys and values hold no page of {page_bytes} bytes"
        )
    return min(num_pages, options.max_batch * -(-spec.context // PAGE))
