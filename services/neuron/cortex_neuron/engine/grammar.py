"""Binds answers to a JSON schema or a regular expression, by llguidance."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import assert_never

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from cortex_proto.errors import BadRequestError
from cortex_proto.generation import Grammar, JsonSchema, Regex

_WHITESPACE = r"[ \t\n\r]{0,32}"
"""Between the parts of JSON: enough to indent, but no more, for some models would never stop it."""
_LONGEST_REASON = 500


class Matcher:
    """A grammar, and how far one answer has come in it."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def is_over(self) -> bool:
        """Whether the answer can only end now."""
        return self._matcher.is_stopped()

    @property
    def fault(self) -> str:
        """Why the answer cannot go on; empty if it can."""
        return _reason(self._matcher.get_error()) if self._matcher.is_error() else ""

    def allowed(self) -> bytes:
        """Give one bit a token, the lowest of each byte first: 1 if it may come next."""
        return self._matcher.compute_bitmask()

    def advance(self, token: int) -> None:
        """Take in the token that came."""
        self._matcher.consume_token(token)


class Grammars:
    """Reads grammars for one vocabulary, which is prepared when the first of them comes."""

    def __init__(self, tokenizer: Path, eos_ids: Iterable[int]) -> None:
        self._path = tokenizer
        self._eos_ids = sorted(eos_ids)

    def bind(self, grammar: Grammar) -> Matcher:
        """Begin an answer that `grammar` binds.

        Raises:
            BadRequestError: there is a mistake in it, or something that cannot be enforced.
        """
        try:
            matcher = LLMatcher(
                self._tokenizer, _source(grammar), log_level=0, limits=LLParserLimits(verbose_errors=False)
            )
        except ValueError as error:
            raise BadRequestError(f"response_format: {error}", "response_format") from error
        if matcher.is_error():
            raise BadRequestError(f"response_format: {_reason(matcher.get_error())}", "response_format")
        return Matcher(matcher)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return LLTokenizer(str(self._path), eos_token=self._eos_ids or None)


def _source(grammar: Grammar) -> str:
    match grammar:
        case JsonSchema(schema=schema):
            return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _WHITESPACE})
        case Regex(pattern=pattern):
            return LLMatcher.grammar_from_regex(pattern)
        case never:
            assert_never(never)


def _reason(error: str) -> str:
    return " ".join(error.split())[:_LONGEST_REASON]
