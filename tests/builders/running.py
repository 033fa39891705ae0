"""The whole product as processes, for tests: `cortex up` on free ports, its files in a folder of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from builders.waiting import until
from cortex_cli.ports import free_ports

START_LIMIT_S = 60.0
STOP_LIMIT_S = 60.0
RUN_LIMIT_S = 90.0
ASK_LIMIT_S = 90.0
CHILDREN = ("nats", "scheduler", "evictor", "metrics", "gateway", "neuron")


@dataclass(frozen=True)
class Ports:
    """Where one system listens."""

    gateway: int
    metrics: int
    neuron: int
    nats: int

    @classmethod
    def free(cls) -> "Ports":
        return cls(*free_ports(4))

    def environment(self, store: Path) -> dict[str, str]:
        """Return the overrides that put a system on these ports."""
        return {
            "CORTEX_GATEWAY__LISTEN": f"127.0.0.1:{self.gateway}",
            "CORTEX_METRICS__LISTEN": f"127.0.0.1:{self.metrics}",
            "CORTEX_NEURON__LISTEN": f"127.0.0.1:{self.neuron}",
            "CORTEX_NATS__URL": f"nats://127.0.0.1:{self.nats}",
            "CORTEX_NATS__STORE_DIR": str(store),
            "CORTEX_LOG__FORMAT": "json",
        }


class Cortex:
    """One `cortex up` and everything it started."""

    def __init__(self, folder: Path, *, settings: str = "", models: str = "") -> None:
        self.ports = Ports.free()
        self.url = f"http://127.0.0.1:{self.ports.gateway}"
        self.nats_url = f"nats://127.0.0.1:{self.ports.nats}"
        self.lines: list[str] = []
        """All that it wrote on standard error."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cortex.toml").write_text(settings)
        if models:
            (folder / "models.toml").write_text(models)
        self._folder = folder
        self.store = folder / "nats"
        self._environment = {**os.environ, **self.ports.environment(self.store)}
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread()

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self._process is not None
        return self._process.pid

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of `cortex ARGUMENTS`."""
        return [sys.executable, "-m", "cortex_cli.main", *arguments]

    def records(self) -> list[dict[str, Any]]:
        """Return the log so far, without the lines that are no JSON."""
        return [record for line in self.lines if (record := record_of(line))]

    def run(self, *arguments: str, **overrides: str) -> "subprocess.CompletedProcess[str]":
        """Run another `cortex` command in the same folder, with the same settings but `overrides`."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self._folder,
            env={**self._environment, **overrides},
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
            check=False,
        )

    def start(self) -> None:
        """Start; do not wait."""
        self._process = subprocess.Popen(
            self.command("up"),
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def wait_ready(self) -> None:
        """Wait until everything is up: after the start, or after something of it came back."""
        self.wait_event("up", within_s=START_LIMIT_S)
        self.wait(lambda: self.answers("/readyz"), what="the gateway is ready", within_s=START_LIMIT_S)

    def wait(self, look: Callable[[], Any], *, what: str, within_s: float = 30.0) -> Any:
        """Wait until `look` returns something true; on failure show the last lines of the log."""
        try:
            return until(look, within_s=within_s, what=what)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.lines[-60:]])) from None

    def wait_event(self, event: str, *, after: int = 0, within_s: float = 30.0, **fields: object) -> Any:
        """Wait for a log record with this event and these fields, written after line `after`; return it."""

        def found() -> Any:
            records = (record_of(line) for line in self.lines[after:])
            return next((r for r in records if _matches(r, {"event": event, **fields})), None)

        return self.wait(found, what=f"{event} {fields}", within_s=within_s)

    def answers(self, path: str) -> bool:
        """Whether a GET from the gateway gives success."""
        try:
            url = f"{self.url}{path}"
            return httpx.get(url, timeout=5.0, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def ask(self, prompt: str, **fields: Any) -> str:
        """Ask the demo model and return its answer, a short one unless `fields` say otherwise."""
        body = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 4,
            **fields,
        }
        response = httpx.post(
            f"{self.url}/v1/chat/completions", json=body, timeout=ASK_LIMIT_S, trust_env=False
        )
        response.raise_for_status()
        return str(response.json()["choices"][0]["message"]["content"])

    def child(self, name: str) -> psutil.Process | None:
        """Return the process that runs as `name` now, past its start as a tether."""
        for process in self.children():
            if name == name_of(process):
                return process
        return None

    def children(self) -> list[psutil.Process]:
        """Return all processes of the system but the supervisor, the neuron's own included."""
        try:
            found: list[psutil.Process] = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return found

    def stop(self) -> int:
        """Ask it to stop, as Ctrl-C does; return the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        return self.wait_exit()

    def wait_exit(self) -> int:
        """Wait until the supervisor has gone; return its exit code."""
        assert self._process is not None
        code = self._process.wait(STOP_LIMIT_S)
        self._reader.join(STOP_LIMIT_S)
        return code

    def close(self) -> None:
        """Make sure that nothing is left, whatever the test did."""
        if self._process is None:
            return
        left = [psutil.Process(self.pid), *self.children()] if self._process.poll() is None else []
        for process in left:
            _kill(process)
        self._process.wait(STOP_LIMIT_S)
        self._reader.join(STOP_LIMIT_S)

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                self.lines.append(line.rstrip())


CortexFactory = Callable[..., Cortex]
"""`make(settings=..., models=...)`: one more system, not started."""


def record_of(line: str) -> dict[str, Any]:
    """Read a log line; one that is no JSON gives nothing."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def name_of(process: psutil.Process) -> str | None:
    """Say which of a system's programs a process is; None if it is another, or has just gone."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return None
    if any(word == "cortex_kit.tether" for word in words):
        return None
    if words and Path(words[0]).name == "nats-server":
        return "nats"
    return words[words.index("serve") + 1] if "serve" in words[:-1] else None


def _matches(record: dict[str, Any], fields: dict[str, object]) -> bool:
    return all(record.get(key) == value for key, value in fields.items())


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
