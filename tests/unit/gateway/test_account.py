from cortex_gateway.account import CANCELLED, UNKNOWN_MODEL, Account
from cortex_proto.generation import Accepted, Finished, TextDelta, Timing, Usage
from cortex_proto.ids import ModelId, NodeId, RequestId

A = NodeId("a")


def account() -> Account:
    return Account(RequestId("r"), "openai_chat", stream=True, arrived_s=100.0)


def finished(output_tokens: int) -> Finished:
    return Finished("stop", Usage(5, output_tokens), Timing(0, 0, 0), "")


def test_a_request_that_went_well() -> None:
    kept = account()
    kept.model = ModelId("m")
    kept.send(A, 101.0)
    kept.take(Accepted(A), 101.1)
    kept.take(TextDelta("a"), 102.0)
    kept.take(finished(5), 104.0)

    done = kept.done(104.5, "now")

    assert (done.model, done.node, done.outcome) == ("m", "a", "stop")
    assert (done.queue_s, done.ttft_s, done.latency_s) == (1.0, 2.0, 4.5)
    assert (done.prompt_tokens, done.output_tokens, done.attempts) == (5, 5, 1)


def test_the_first_token_is_no_part_of_the_decode_speed() -> None:
    kept = account()
    kept.take(TextDelta("a"), 102.0)
    kept.take(finished(5), 104.0)

    assert kept.done(104.0, "now").tokens_per_s == 2.0


def test_one_token_has_no_decode_speed() -> None:
    kept = account()
    kept.take(TextDelta("a"), 102.0)
    kept.take(finished(1), 104.0)

    assert kept.done(104.0, "now").tokens_per_s is None


def test_being_accepted_is_no_first_token() -> None:
    kept = account()

    kept.take(Accepted(A), 101.0)

    assert not kept.begun
    assert kept.done(101.0, "now").ttft_s is None


def test_a_request_nobody_ended_was_cancelled_and_names_no_model_of_the_client() -> None:
    done = account().done(103.0, "now")

    assert done.outcome == CANCELLED
    assert done.model == UNKNOWN_MODEL
    assert done.node is None
    assert done.queue_s == 3.0
