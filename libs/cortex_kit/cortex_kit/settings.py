"""Settings of all parts: one TOML file, one frozen struct a section, every key with its default.

Any key may be overridden by the environment as CORTEX_SECTION__KEY. An unknown section or key, in
the file or in the environment, stops the start with its name.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec


class SettingsError(ValueError):
    """The settings cannot be used; the text says which key is at fault."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the sections: an unknown key is an error."""


class Gateway(Section, frozen=True):
    """`[gateway]`: the HTTP endpoint."""

    listen: str = "127.0.0.1:31313"
    max_body_bytes: int = 4 * 1024 * 1024
    max_waiting: int = 256
    """Requests that may wait for one model to be loaded; one more is told to come back later."""
    wait_timeout_s: float = 1800.0
    """Longest wait for a model to be loaded."""
    request_timeout_s: float = 3600.0
    """Longest time for one answer, wait and generation together."""
    max_attempts: int = 3
    """Dispatches of one request before its first token."""


class Scheduler(Section, frozen=True):
    """`[scheduler]`: what runs where."""

    models_config: str = ""
    """The catalogue, relative to this file. Empty: models.toml beside it; failing that, the demo model."""
    load_retry_s: float = 15.0
    """A load that failed on a node is not tried there again before that."""


class Eviction(Section, frozen=True):
    """`[eviction]`: who leaves when room is needed."""

    strategy: Literal["lru", "priority"] = "lru"
    min_residence_s: float = 2.0
    """A model that became ready less than so long ago, and was not used since, counts as busy."""


class Neuron(Section, frozen=True):
    """`[neuron]`: one GPU machine."""

    name: str = ""
    """Empty: the host name."""
    listen: str = "127.0.0.1:13131"
    """Read-only HTTP for probes and people."""
    devices: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPUs if there are any, else the CPU."""
    memory_limit_mb: int | None = None
    """Of each device, in MiB. None: 90 % of a GPU, 80 % of main memory."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on a GPU, float32 on the CPU."""
    threads: int | None = None
    """Of each rank on the CPU. None: one per physical core, shared out among the ranks."""
    max_batch: int = 32
    """Requests that decode together, per model."""
    max_waiting: int = 128
    """Requests that may wait for a place in the batch, per model."""
    kv_cache_mb: int = 512
    """Memory for keys and values, per model, in MiB; bounds the tokens held at a time."""
    prefill_tokens: int = 256
    """Prompt tokens computed in one step at most, so that running answers go on meanwhile."""
    load_timeout_s: float = 600.0


class Metrics(Section, frozen=True):
    """`[metrics]`: Prometheus."""

    listen: str = "127.0.0.1:31314"


class Nats(Section, frozen=True):
    """`[nats]`: the bus."""

    url: str = "nats://127.0.0.1:4222"
    """Where the services connect to; several, parted by commas."""
    embedded: bool = True
    """Whether `cortex up` starts a NATS server of its own at the first `url`."""
    store_dir: str = ""
    """Of the embedded server. Empty: the user's state directory."""


class Log(Section, frozen=True):
    """`[log]`: what is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "text"] = "auto"
    """auto: text on a terminal, else JSON lines."""


class Settings(Section, frozen=True):
    """The whole file."""

    gateway: Gateway = Gateway()
    scheduler: Scheduler = Scheduler()
    eviction: Eviction = Eviction()
    neuron: Neuron = Neuron()
    metrics: Metrics = Metrics()
    nats: Nats = Nats()
    log: Log = Log()


DEFAULT_FILE = "cortex.toml"
FILE_VARIABLE = "CORTEX_CONFIG"
_OVERRIDE = re.compile(r"CORTEX_([A-Z]+)__([A-Z_0-9]+)")


def load(path: Path | None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings.

    The file is `path`, else the one CORTEX_CONFIG names, else ./cortex.toml if it exists.

    Raises:
        SettingsError: the file is missing though named, is no TOML, or has an unknown or mistyped key.
    """
    named = path or (Path(environ[FILE_VARIABLE]) if environ.get(FILE_VARIABLE) else None)
    file = named or Path(DEFAULT_FILE)
    if named is None and not file.exists():
        return decode("", environ)
    try:
        return decode(file.read_text(), environ)
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from error
    except SettingsError as error:
        raise SettingsError(f"{file}: {error}") from error


def decode(text: str, environ: Mapping[str, str]) -> Settings:
    """Decode TOML text with the overrides of `environ` applied.

    Raises:
        SettingsError: no TOML, an unknown or mistyped key.
    """
    try:
        tree = msgspec.toml.decode(text)
    except msgspec.DecodeError as error:
        raise SettingsError(str(error)) from error
    for name, value in environ.items():
        if match := _OVERRIDE.fullmatch(name):
            tree.setdefault(match[1].lower(), {})[match[2].lower()] = _typed(value)
    try:
        return msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        raise SettingsError(_in_plain_words(str(error))) from error


def _typed(value: str) -> Any:
    """Read an override as TOML would: a number or a truth value if it looks like one, else text."""
    try:
        return msgspec.toml.decode(f"value = {value}")["value"]
    except msgspec.DecodeError:
        return value


def _in_plain_words(reason: str) -> str:
    return reason.replace("Object contains unknown field", "unknown key").replace("`$.", "`")
