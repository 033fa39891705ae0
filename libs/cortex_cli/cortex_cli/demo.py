"""`cortex demo`: the whole system on free ports, one question through the API, and everything gone again."""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from cortex_cli import api
from cortex_cli.answer import Answer, show_answer
from cortex_cli.chat import first_model
from cortex_cli.errors import CliError
from cortex_cli.ports import free_ports
from cortex_cli.up import cortex_command

START_LIMIT_S = 60.0
STOP_LIMIT_S = 60.0
_SERVES = b'"service":"up","event":"up"'


def run(options: argparse.Namespace) -> int:
    """Start, ask, print the answer and how fast it came, stop."""
    with tempfile.TemporaryDirectory(prefix="cortex-demo-") as folder:
        answer = asyncio.run(_demo(Path(folder), options))
    print(
        f"\nfirst token after {answer.ttft_s:.1f} s (with loading), then {answer.tokens_per_s:.1f} tokens/s; "
        f"{answer.usage.prompt_tokens} tokens in, {answer.usage.completion_tokens} out"
    )
    return 0


async def _demo(folder: Path, options: argparse.Namespace) -> Answer:
    gateway, metrics, neuron, nats = free_ports(4)
    overrides = {
        "CORTEX_GATEWAY__LISTEN": f"127.0.0.1:{gateway}",
        "CORTEX_METRICS__LISTEN": f"127.0.0.1:{metrics}",
        "CORTEX_NEURON__LISTEN": f"127.0.0.1:{neuron}",
        "CORTEX_NATS__URL": f"nats://127.0.0.1:{nats}",
        "CORTEX_NATS__EMBEDDED": "true",
        "CORTEX_LOG__FORMAT": "json",
        "CORTEX_NATS__STORE_DIR": str(folder / "nats"),
    }
    url = f"http://127.0.0.1:{gateway}"
    print(f"starting cortex on {url} ...", flush=True)
    async with _running(folder, overrides), api.client(url) as http:
        model = await first_model(http)
        print(f"{model} is asked: {options.prompt}\n", flush=True)
        messages = [{"role": "user", "content": options.prompt}]
        body = {"model": model, "messages": messages, "max_tokens": options.max_tokens, "temperature": 0}
        return await show_answer(http, body)


@asynccontextmanager
async def _running(folder: Path, overrides: dict[str, str]) -> AsyncIterator[None]:
    """Run `cortex up` in `folder` while open; its log is shown only if something goes wrong."""
    environment = {k: v for k, v in os.environ.items() if k != "CORTEX_CONFIG"} | overrides
    up = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cortex_kit.tether", str(os.getpid()), *cortex_command(), "up"),
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert up.stderr is not None
    log: list[str] = []
    serving = asyncio.Event()
    listening = asyncio.create_task(_listen(up.stderr, log, serving))
    try:
        await _until_it_serves(serving, listening)
        yield
        await _stop(up)
    except BaseException:
        with suppress(CliError):
            await _stop(up)
        sys.stderr.writelines(log)
        raise


async def _listen(output: asyncio.StreamReader, log: list[str], serving: asyncio.Event) -> None:
    async for line in output:
        log.append(line.decode(errors="replace"))
        if _SERVES in line:
            serving.set()


async def _until_it_serves(serving: asyncio.Event, listening: asyncio.Task[None]) -> None:
    waiting = asyncio.create_task(serving.wait())
    await asyncio.wait({waiting, listening}, timeout=START_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if listening.done():
        raise CliError("cortex ended while it started")
    if not serving.is_set():
        raise CliError(f"cortex did not serve after {START_LIMIT_S:g} s")


async def _stop(up: asyncio.subprocess.Process) -> None:
    if up.returncode is None:
        up.send_signal(signal.SIGINT)
    try:
        async with asyncio.timeout(STOP_LIMIT_S):
            code = await up.wait()
    except TimeoutError as error:
        up.kill()
        raise CliError(f"cortex did not stop within {STOP_LIMIT_S:g} s") from error
    if code != 0:
        raise CliError(f"cortex ended with exit code {code}")
