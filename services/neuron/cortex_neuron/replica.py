"""One loaded model: its engine, its text side, and how busy it is."""

from dataclasses import dataclass

from cortex_neuron.engine.choosing import Choosing
from cortex_neuron.engine.cluster import Cluster
from cortex_neuron.engine.messages import EngineRequest
from cortex_neuron.text.tokenizer import TextCodec
from cortex_proto.catalogue import Model
from cortex_proto.errors import BadRequestError, ContextLengthError
from cortex_proto.generation import Generate, Sampling


@dataclass(slots=True)
class Replica:
    """A model that is loaded here."""

    model: Model
    cluster: Cluster
    codec: TextCodec
    context: int
    """Longest prompt plus answer, in tokens."""
    max_batch: int
    max_waiting: int
    idle_since_s: float
    """When its last stream ended, or when it was loaded."""
    running: int = 0
    """Requests in the batch, after the last step."""

    @property
    def capacity(self) -> int:
        """Streams that may be under way; the engine may have room for fewer, and then says so itself."""
        return self.max_batch + self.max_waiting

    def request(self, generate: Generate) -> EngineRequest:
        """Turn a request into what the engine understands; slow, call it in a thread.

        Raises:
            ContextLengthError: the prompt leaves no room for an answer.
            BadRequestError: the prompt is empty, or the chat template refuses it.
        """
        tokens = self.codec.encode(generate.prompt)
        if not tokens:
            raise BadRequestError("the prompt is empty")
        longest = min(self.context - 1, self.model.limit.input or self.context)
        if len(tokens) > longest:
            raise ContextLengthError(
                f"this model's maximum context length is {self.context} tokens: a prompt may have {longest}, "
                f"and this one has {len(tokens)}"
            )
        limits = generate.limits
        return EngineRequest(
            id=generate.stream,
            tokens=tokens,
            max_tokens=self._max_tokens(limits.max_tokens, len(tokens)),
            choosing=self._choosing(generate.sampling),
            seed=generate.sampling.seed,
            ignore_eos=limits.ignore_eos,
            min_tokens=limits.min_tokens,
            stop_ids=limits.stop_token_ids,
        )

    def _choosing(self, asked: Sampling) -> Choosing:
        settled = self.codec.sampling(asked)
        return Choosing(
            logprobs=asked.logprobs,
            grammar=asked.grammar,
            logit_bias=asked.logit_bias,
            repetition_penalty=settled.repetition_penalty,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            temperature=settled.temperature,
            top_k=settled.top_k,
            top_p=settled.top_p,
            min_p=settled.min_p,
        )

    def _max_tokens(self, asked: int | None, num_prompt: int) -> int:
        """Grant what was asked for, as far as the catalogue and the context allow."""
        bounds = (asked, self.model.limit.output, self.context - num_prompt)
        return min(bound for bound in bounds if bound is not None)
