"""One rank of a cluster: a process that loads the model, then computes step after step.

`python -m cortex_neuron.engine.rank <socket fd> <parent pid> <options as JSON>`, only ever started
by `cluster`, which writes its seat to its standard input. Rank 0 leads: it takes requests, plans and
samples. The others compute what it plans, in the same order, and end when it does. It ends when
its socket does, and the kernel kills it when its parent dies.
"""

import contextlib
import gc
import secrets
import socket
import sys
import time

import structlog
import torch

from cortex_kit import logs, settings
from cortex_kit.tether import tether_to_parent
from cortex_neuron.engine.grammar import Grammars
from cortex_neuron.engine.messages import (
    Broken,
    CancelRequest,
    EngineRequest,
    Event,
    FromRank,
    Loading,
    LoadOptions,
    LoadRefused,
    Ready,
    Refused,
    StepEvents,
    ToRank,
    Unframer,
    frame,
    read_options,
    to_rank,
)
from cortex_neuron.engine.plan import Plan
from cortex_neuron.engine.plan_channel import PlanReceiver, PlanSender
from cortex_neuron.engine.runner import Runner
from cortex_neuron.engine.scheduler import Limits, Scheduler
from cortex_neuron.engine.seat import Seat, read_seat
from cortex_neuron.engine.team import Following, Leading, join
from cortex_neuron.model.spec import PAGE, Step
from cortex_proto.errors import CortexError, EngineError, LoadFailedError, to_wire

log = structlog.get_logger()
_CHUNK_BYTES = 1 << 16


class Channel:
    """The rank's end of the socket pair."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._unframer = Unframer()

    def send(self, message: FromRank) -> None:
        """Send `message`; waits while the neuron does not read."""
        self._socket.sendall(frame(message))

    def receive(self, *, wait: bool) -> list[ToRank]:
        """Give all messages that have arrived; with `wait`, at least one.

        Raises:
            EOFError: the neuron wants this rank to leave, or is gone.
        """
        messages: list[ToRank] = []
        while True:
            try:
                chunk = self._socket.recv(_CHUNK_BYTES, 0 if wait and not messages else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return messages
            if not chunk:
                raise EOFError
            messages += [to_rank.decode(payload) for payload in self._unframer.feed(chunk)]


class Rank:
    """The leader: scheduler and runner in one loop; the only place where they meet clock and socket."""

    def __init__(
        self, channel: Channel, runner: Runner, scheduler: Scheduler, plans: PlanSender | None = None
    ) -> None:
        self._channel = channel
        self._runner = runner
        self._scheduler = scheduler
        self._plans = plans or PlanSender()

    def serve(self) -> None:
        """Take in messages and compute, step after step; wait for messages when there is nothing to do.

        Raises:
            EOFError: time to leave.
        """
        scheduler = self._scheduler
        while True:
            idle = not scheduler.num_running and not scheduler.num_waiting
            events = self._take_in(self._channel.receive(wait=idle))
            plan = scheduler.plan(time.monotonic())
            if plan.rows:
                events += self._compute(plan)
            self._report(events)

    def _take_in(self, messages: list[ToRank]) -> list[Event]:
        events: list[Event] = []
        for message in messages:
            match message:
                case EngineRequest():
                    if refused := self._submit(message):
                        events.append(refused)
                case CancelRequest():
                    if ended := self._scheduler.cancel(message.id, time.monotonic()):
                        events.append(ended)
        return events

    def _submit(self, request: EngineRequest) -> Refused | None:
        try:
            self._scheduler.submit(request, seed=secrets.randbits(63), now_s=time.monotonic())
        except CortexError as error:
            return Refused(request.id, to_wire(error))
        return None

    def _compute(self, plan: Plan) -> list[Event]:
        try:
            self._plans.send(plan)
            sampled, logprobs = self._runner.step(plan)
        except Exception as error:  # noqa: BLE001  # whatever it was, it must not take the other requests along
            return self._fail(plan, error)
        return self._scheduler.commit(plan, sampled, time.monotonic(), logprobs)

    def _fail(self, plan: Plan, error: Exception) -> list[Event]:
        """Fail the requests of a step; go on with the others if the device still works.

        Ranks that share a model are out of step after a failure, so there the whole cluster ends.
        """
        log.error("step_failed", plan=plan.because, exc_info=error)
        if not self._plans.is_alone:
            self._channel.send(Broken(f"a step failed: {error}"))
            raise SystemExit(1) from error
        failed = to_wire(EngineError("the engine failed on this request"))
        events: list[Event] = [Refused(stream, failed) for stream in self._scheduler.abandon(plan)]
        try:
            self._runner.check_device()
        except RuntimeError as fault:
            self._report(events)
            self._channel.send(Broken(f"the device does not work any more: {fault}"))
            raise SystemExit(1) from fault
        return events

    def _report(self, events: list[Event]) -> None:
        scheduler = self._scheduler
        self._channel.send(
            StepEvents(
                events,
                running=scheduler.num_running,
                waiting=scheduler.num_waiting,
                free_pages=scheduler.num_free_pages,
                pages=self._runner.num_pages,
            )
        )


def main() -> None:
    """Load and serve as the command line says."""
    fd, parent_pid, options_text = sys.argv[1:]
    tether_to_parent(int(parent_pid))
    logs.setup("neuron", settings.Log())
    seat = read_seat(sys.stdin.buffer.read())
    with socket.socket(fileno=int(fd)) as connection, contextlib.suppress(EOFError, ConnectionError):
        run(Channel(connection), read_options(options_text), seat)


def run(channel: Channel, options: LoadOptions, seat: Seat) -> None:
    """Load, say how that went, and serve until the neuron ends the channel.

    Raises:
        EOFError, ConnectionError: the neuron or the leader ended it.
    """
    torch.set_num_threads(options.threads)
    try:
        team = join(seat, torch.device(options.devices[seat.rank]))
        runner = Runner.load(
            options, team.group, lambda stage, fraction: channel.send(Loading(stage, fraction))
        )
    except ConnectionError:
        raise
    except Exception as error:  # the neuron needs the reason, whatever it is
        log.exception("load_failed", path=str(options.path), rank=seat.rank)
        channel.send(LoadRefused(to_wire(_as_load_failure(error, options))))
        return
    limits = _limits(runner, options)
    gc.freeze()  # the model stays to the end: never look through it again
    channel.send(Ready(context=limits.context, vocab_size=limits.vocab_size, pages=limits.num_pages))
    with torch.inference_mode(), contextlib.closing(team.group):
        match team:
            case Leading(plans=plans):
                Rank(channel, runner, _scheduler(limits, options), plans).serve()
            case Following(plans=orders):
                follow(channel, runner, orders)


def follow(channel: Channel, runner: Runner, orders: PlanReceiver) -> None:
    """Compute what the leader plans, until it leaves.

    Raises:
        EOFError: it has.
    """
    while True:
        plan = orders.receive()
        try:
            runner.compute(plan)
        except Exception as error:
            log.exception("step_failed", plan=plan.because)
            channel.send(Broken(f"a step failed: {error}"))
            raise SystemExit(1) from error


def _scheduler(limits: Limits, options: LoadOptions) -> Scheduler:
    if options.tokenizer is None:
        return Scheduler(limits)
    return Scheduler(limits, Grammars(options.tokenizer, limits.eos_ids).bind)


def _as_load_failure(error: Exception, options: LoadOptions) -> CortexError:
    if isinstance(error, CortexError):
        return error
    return LoadFailedError(
        f"{options.path} did not load on {', '.join(options.devices)}: {type(error).__name__}: {error}"
    )


def _limits(runner: Runner, options: LoadOptions) -> Limits:
    has_states = runner.spec.num_delta_layers > 0
    return Limits(
        context=min(runner.spec.context, runner.num_pages * PAGE),
        vocab_size=runner.spec.vocab_size,
        eos_ids=frozenset(runner.spec.eos_ids),
        num_pages=runner.num_pages,
        max_batch=options.max_batch,
        max_waiting=options.max_waiting,
        prefill_tokens=max(options.prefill_tokens, PAGE) if has_states else options.prefill_tokens,
        num_slots=options.max_batch if has_states else 0,
        num_snapshots=Step(options.max_batch).num_snapshots if has_states else 0,
    )


if __name__ == "__main__":
    main()
