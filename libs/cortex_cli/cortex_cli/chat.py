"""`cortex chat`: talk to a model in the terminal."""

import argparse
import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx

from cortex_cli import api
from cortex_cli.answer import Answer, show_answer
from cortex_cli.connection import endpoint
from cortex_cli.errors import CliError


@dataclass(slots=True)
class Conversation:
    """What has been said so far, and how the model shall answer."""

    url: str
    options: dict[str, object]
    messages: list[dict[str, str]] = field(default_factory=list)

    async def say(self, prompt: str) -> Answer:
        """Ask, show the answer as it comes, and remember both."""
        asked = [*self.messages, {"role": "user", "content": prompt}]
        async with api.client(self.url) as http:
            model = self.options.get("model") or await first_model(http)
            answer = await show_answer(http, {**self.options, "model": model, "messages": asked})
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        return answer


def run(options: argparse.Namespace) -> int:
    """Answer the prompt, or one after the other until the user has had enough."""
    wanted = {"model": options.model, "max_tokens": options.max_tokens, "temperature": options.temperature}
    conversation = Conversation(endpoint(options), {k: v for k, v in wanted.items() if v is not None})
    if options.system:
        conversation.messages.append({"role": "system", "content": options.system})
    if options.prompt is not None:
        asyncio.run(conversation.say(options.prompt))
        return 0
    for prompt in _prompts():
        _take_turn(conversation, prompt)
    return 0


async def first_model(http: httpx.AsyncClient) -> str:
    """Choose the first model that the API offers.

    Raises:
        CliError: it offers none.
    """
    entries = await api.models(http)
    if not entries:
        raise CliError("the catalogue is empty: list a model in models.toml")
    return entries[0].id


def _take_turn(conversation: Conversation, prompt: str) -> None:
    """Answer one prompt of a conversation, which goes on after an error or a Ctrl-C."""
    try:
        asyncio.run(conversation.say(prompt))
    except CliError as error:
        print(f"\ncortex: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\n(stopped)", file=sys.stderr)


def _prompts() -> Iterator[str]:
    while True:
        try:
            prompt = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if prompt:
            yield prompt
