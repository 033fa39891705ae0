"""`cortex models`: what the API offers."""

import argparse
import asyncio

from cortex_cli import api
from cortex_cli.connection import endpoint
from cortex_cli.tables import print_json, print_table


def run(options: argparse.Namespace) -> int:
    """List the models."""
    entries = asyncio.run(_fetch(endpoint(options)))
    if options.json:
        print_json(entries)
    else:
        print_table("models", ("id", "state", "context"), [_row(entry) for entry in entries])
    return 0


async def _fetch(url: str) -> list[api.ModelEntry]:
    async with api.client(url) as http:
        return await api.models(http)


def _row(entry: api.ModelEntry) -> tuple[str, ...]:
    state = ", ".join(f"{where.status} on {where.node}" for where in entry.locations) or "not loaded"
    return (entry.id, state, "" if entry.max_model_len is None else str(entry.max_model_len))
