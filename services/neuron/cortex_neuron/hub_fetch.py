"""Downloads from the Hugging Face hub: `python -m cortex_neuron.hub_fetch REPO`, started by `hub`.

A process of its own, because the hub's library blocks, and can be stopped only together with its
process. Endpoint, token and cache are those that the library reads from the environment
(HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE). What it logs may hold signed addresses, so nobody hears it.
"""

import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import msgspec
from huggingface_hub import HfApi, constants, errors, hf_hub_download
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils.tqdm import tqdm

from cortex_neuron.files import Repo, choose_gguf
from cortex_neuron.hub import Fetched, Fetching, NotFetched, Said
from cortex_proto.catalogue import MIB
from cortex_proto.errors import LoadFailedError

_SIDE = (
    *("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab*", "merges*", "*.tiktoken", "*.model", "chat_template*"),
)
"""All that the engine and the tokenizers read beside the weights; in the top folder only."""
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_REPORT_PERIOD_S = 0.25
_STALE_S = 3600.0
_UNREACHABLE = (httpx2.TransportError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)

Say = Callable[[Said], None]
Get = Callable[[str], Path]
"""Makes sure that a file of the repository is on this machine, and says where."""


@dataclass(frozen=True, slots=True)
class _File:
    size: int
    blob: str
    """Its name in the cache."""


@dataclass(frozen=True, slots=True)
class _Listing:
    """What the hub has of a repository at one commit."""

    commit: str
    files: Mapping[str, _File]


class _UnreachableError(Exception):
    """The hub does not answer, or not sensibly."""


def fetch(repo: Repo, say: Say) -> Path:
    """Bring what is wanted of `repo` into the cache; what is there will do if the hub cannot be reached.

    Raises:
        LoadFailedError: it cannot be had; the text says why.
    """
    try:
        listing = _list(repo)
    except _UnreachableError as error:
        return _cached(repo, str(error))
    try:
        return _fetch(repo, listing, say)
    except errors.GatedRepoError as error:
        raise _no_access(repo) from error
    except errors.HfHubHTTPError as error:
        raise LoadFailedError(f"{repo.name}: {_host()} answered {error.response.status_code}") from error
    except _UNREACHABLE as error:
        raise LoadFailedError(f"{repo.name}: the connection to {_host()} broke: {_reason(error)}") from error
    except OSError as error:
        raise LoadFailedError(f"{repo.name} cannot be written to the cache: {error.strerror}") from error


def _list(repo: Repo) -> _Listing:
    """Ask the hub what it has."""
    try:
        model = HfApi().model_info(
            repo.name, revision=repo.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except errors.GatedRepoError as error:
        raise _no_access(repo) from error
    except errors.RevisionNotFoundError as error:
        raise LoadFailedError(f"{repo.name} on {_host()} has no revision {repo.revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise LoadFailedError(
            f"{_host()} has no repository {repo.name}, or it is private: then HF_TOKEN must give access to it"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status < 500 and status != 429:
            raise LoadFailedError(f"{repo.name}: {_host()} answered {status}") from error
        raise _UnreachableError(f"{_host()} answered {status}") from error
    except _UNREACHABLE as error:
        raise _UnreachableError(f"{_host()} cannot be reached: {_reason(error)}") from error
    siblings = model.siblings or ()
    files = {
        it.rfilename: _File(it.size or 0, it.lfs.sha256 if it.lfs else it.blob_id or "") for it in siblings
    }
    return _Listing(str(model.sha), files)


def _fetch(repo: Repo, listing: _Listing, say: Say) -> Path:
    folder = _folder(repo)
    get = partial(hf_hub_download, repo.name, revision=listing.commit)
    names, path = _wanted(repo, listing.files, lambda name: Path(get(name)))
    files = [listing.files[name] for name in names]
    need_bytes = sum(file.size for file in files if not (folder / "blobs" / file.blob).exists())
    _clear(folder)
    _check_room(repo, need_bytes)
    counter = _counter(need_bytes, say)
    for name in names:
        get(name, tqdm_class=counter)
    _remember(folder / "refs" / repo.revision, listing.commit)
    return folder / "snapshots" / listing.commit / path


def _wanted(repo: Repo, files: Iterable[str], get: Get) -> tuple[list[str], str]:
    """Choose what to fetch, the weights last, and what of it is the model: a file, or "" for the whole.

    Raises:
        LoadFailedError: it holds nothing that the engine could load.
    """
    names = sorted(files)
    if repo.quant or "config.json" not in names:
        file = choose_gguf((name for name in names if name.endswith(".gguf")), repo.quant, repo.name)
        return [file], file
    side = [name for name in names if "/" not in name and any(fnmatch(name, it) for it in _SIDE)]
    if _SINGLE in names:
        return [*side, _SINGLE], ""
    if _INDEX not in names:
        raise LoadFailedError(f"{repo.name} has config.json, but neither {_SINGLE} nor {_INDEX}")
    weights = sorted(set(json.loads(get(_INDEX).read_text())["weight_map"].values()))
    if absent := [name for name in weights if name not in names]:
        raise LoadFailedError(f"{repo.name} lacks what its {_INDEX} names: {', '.join(absent)}")
    return [*side, _INDEX, *weights], ""


def _cached(repo: Repo, because: str) -> Path:
    """Find an earlier download of the same files."""
    folder = _folder(repo)
    reference = folder / "refs" / repo.revision
    snapshot = folder / "snapshots" / (reference.read_text() if reference.exists() else repo.revision)
    names = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()]
    if not names:
        raise LoadFailedError(f"{because}; and no earlier download of {repo.name} is on this node")
    try:
        _, path = _wanted(repo, names, lambda name: snapshot / name)
    except LoadFailedError as error:
        raise LoadFailedError(f"{because}; and an earlier download is not enough: {error}") from error
    return snapshot / path


def _clear(folder: Path) -> None:
    """Remove pieces that a killed download left behind; one that is alive writes all the time."""
    for piece in (folder / "blobs").glob("*.incomplete"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - piece.stat().st_mtime > _STALE_S:
                piece.unlink()


def _check_room(repo: Repo, need_bytes: int) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    if need_bytes > free_bytes:
        raise LoadFailedError(
            f"{repo.name} needs {-(-need_bytes // MIB)} MiB on the disk of {cache}, "
            f"{free_bytes // MIB} MiB are free"
        )


def _counter(total_bytes: int, say: Say) -> type:
    """Make the class of the library's progress bars: one a file, adding up to one download."""
    done_bytes, said_s = 0, 0.0

    class Counter(tqdm):
        def update(self, n: float | None = 1) -> None:
            nonlocal done_bytes, said_s
            done_bytes += int(n or 0)
            if (now_s := time.monotonic()) - said_s >= _REPORT_PERIOD_S:
                said_s = now_s
                say(Fetching(min(1.0, done_bytes / max(1, total_bytes))))

        def update_transfer(self, n: float) -> None:
            """Bytes on the wire, which may be fewer than the file has; not counted."""

    return Counter


def _remember(reference: Path, commit: str) -> None:
    """Note what a revision stands for once all of it is here; an earlier one serves offline till then."""
    if reference.name == commit or (reference.exists() and reference.read_text() == commit):
        return
    reference.parent.mkdir(parents=True, exist_ok=True)
    scratch = reference.with_name(f"{reference.name}.{commit}.tmp")
    scratch.write_text(commit)
    scratch.replace(reference)


def _folder(repo: Repo) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo.name, repo_type="model")


def _no_access(repo: Repo) -> LoadFailedError:
    return LoadFailedError(f"no access to {repo.name} on {_host()}: accept its terms there and set HF_TOKEN")


def _host() -> str:
    """Name the hub, without what else its address may hold."""
    parts = urlsplit(constants.ENDPOINT)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def _reason(error: BaseException) -> str:
    """Say what kind of failure it was; its own text may hold addresses."""
    cause = error.__cause__ or error
    return type(cause).__name__


def main(argument: str) -> None:
    """Fetch what `argument` says, telling on standard output."""

    def say(said: Said) -> None:
        sys.stdout.write(msgspec.json.encode(said).decode() + "\n")
        sys.stdout.flush()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    repo = msgspec.json.decode(argument, type=Repo)
    try:
        say(Fetching(0.0))
        say(Fetched(str(fetch(repo, say))))
    except LoadFailedError as error:
        say(NotFetched(str(error)))
    except Exception as error:  # noqa: BLE001  # the top of this process: the neuron logs what it hears
        say(NotFetched(f"the download of {repo.name} failed: {type(error).__name__}"))


if __name__ == "__main__":
    main(sys.argv[1])
