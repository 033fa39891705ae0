"""A Hugging Face hub of one's own: lists repositories, serves their files by ranges, breaks when told to."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c0ffee" + 34 * "0"
CHUNK_BYTES = 1 << 14
LFS_BYTES = 1 << 16
"""Files of that size and more are kept by their SHA-256, as the real hub does with those of git-lfs."""
LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as the hub heard it."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    """What the hub has, how it misbehaves, and what it was asked."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    """What the list says of a file, where that is not the truth."""
    cut_once: dict[str, int] = field(default_factory=dict)
    """The connection breaks after so many bytes of this file, once."""
    hold_after: dict[str, int] = field(default_factory=dict)
    """Nothing comes after so many bytes of this file, until the hub closes."""
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    held: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    def put(self, repo: str, directory: Path) -> None:
        """Take in all files of a directory."""
        files = (path for path in directory.rglob("*") if path.is_file())
        self.repos[repo] = {str(path.relative_to(directory)): path.read_bytes() for path in files}

    def gets(self, name: str) -> list[Asked]:
        """The downloads of a file, in order."""
        return [it for it in self.asked if it.method == "GET" and it.path.endswith(f"/{name}")]

    def fetched(self) -> set[str]:
        """The names of all files that were downloaded, wholly or in part."""
        gets = (it.path for it in self.asked if it.method == "GET" and "/resolve/" in it.path)
        return {path.rpartition(f"{COMMIT}/")[2] for path in gets}


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` at `hub.url` while entered."""

    class Bound(_Requests):
        pass

    Bound.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Requests(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append(
            Asked(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        if path.startswith("/api/models/"):
            repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            self._list(repo, revision)
        else:
            repo, _, rest = path[1:].partition("/resolve/")
            self._serve(repo, rest.partition("/")[2])

    def _list(self, repo: str, revision: str) -> None:
        if repo not in self.hub.repos:
            return self._refuse(401, "RepoNotFound")
        if revision not in {"main", COMMIT}:
            return self._refuse(404, "RevisionNotFound")
        siblings = [self._sibling(name, content) for name, content in self.hub.repos[repo].items()]
        body = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)
        return None

    def _sibling(self, name: str, content: bytes) -> dict[str, Any]:
        size = self.hub.sizes.get(name, len(content))
        about: dict[str, Any] = {"rfilename": name, "size": size, "blobId": _etag(content)}
        if len(content) >= LFS_BYTES:
            about["lfs"] = {"size": size, "sha256": _etag(content), "pointerSize": 134}
        return about

    def _serve(self, repo: str, name: str) -> None:
        if repo in self.hub.gated:
            return self._refuse(403, "GatedRepo")
        content = self.hub.repos.get(repo, {}).get(name)
        if content is None:
            return self._refuse(404, "EntryNotFound")
        total, start = len(content), 0
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(content)}"', "Accept-Ranges": "bytes"}
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        self._head(206 if asked else 200, {**headers, "Content-Length": str(total - start)})
        if self.command == "GET":
            self._send(name, content[start:])
        return None

    def _send(self, name: str, content: bytes) -> None:
        held_at = self.hub.hold_after.get(name)
        cut_at = self.hub.cut_once.pop(name, None)
        for at in range(0, len(content), CHUNK_BYTES):
            if cut_at is not None and at >= cut_at:
                self.close_connection = True
                return
            if held_at is not None and at >= held_at:
                self.hub.held.set()
                self.hub.closing.wait(LIMIT_S)
                return
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content[at : at + CHUNK_BYTES])

    def _refuse(self, status: int, code: str) -> None:
        self._head(status, {"X-Error-Code": code, "Content-Length": "0"})

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _etag(content: bytes) -> str:
    """Name content as the hub does: large files by SHA-256, others as git does."""
    if len(content) >= LFS_BYTES:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
