"""A stand-in for the Hugging Face hub on the loopback: repositories in memory, and the few paths that its client asks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

WRITER, READER = "writer-of-me", "reader-of-me"  # tokens that it knows


@dataclass
class Repo:
    """One repository: its branches, and the files of each commit."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        self.messages.append(message)
        number = hashlib.sha1(f"{len(self.commits)} {branch}".encode()).hexdigest()
        self.commits[number], self.branches[branch] = files, number
        return number

    def number(self, revision: str) -> str:
        return self.branches.get(revision, revision)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.number(revision)]


@dataclass
class Hub:
    """What was asked of it, and what it holds."""

    address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def add(self, name: str, private: bool = False, folder: Path | None = None) -> Repo:
        """A new repository, with the files of ``folder``."""
        files = {} if folder is None else {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.repos[name] = Repo(private)
        self.repos[name].commit("main", {".gitattributes": b"", **files}, "initial commit")
        return self.repos[name]


class Refusal(Exception):
    def __init__(self, status: int, code: str = "", **document: str):
        self.status, self.code, self.document = status, code, document


def answer(hub: Hub, method: str, path: str, token: str | None, body: bytes) -> Any:
    """The answer to a request: JSON, or the bytes of a file."""
    if method == "POST" and token != WRITER:
        raise Refusal(403, error="You have no right to write.") if token == READER else Refusal(401)
    if path == "/api/validate-yaml":
        return {"errors": [], "warnings": []}
    if path == "/api/repos/create":
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "me":
            raise Refusal(403, error="You have no right to write there.")
        if name in hub.repos:
            raise Refusal(409, url=f"{hub.address}/{name}")
        hub.add(name, asked.get("visibility") == "private" or bool(asked.get("private")))
        return {"url": f"{hub.address}/{name}"}
    if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
        files = _repo(hub, found[1], token).files(found[2])
        if found[3] not in files:
            raise Refusal(404, "EntryNotFound")
        return files[found[3]]
    found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/(.+))?", path)
    if found is None:
        raise Refusal(404, "NoSuchPath")
    repo, act = _repo(hub, found[1], token), found[2] or "revision"
    revision = unquote(found[3] or "main")
    if act == "branch":
        repo.branches.setdefault(revision, repo.branches["main"])
        return {}
    if act == "tree" and "/" in revision:  # a folder inside; there are none
        raise Refusal(404, "EntryNotFound")
    if revision not in repo.branches and revision not in repo.commits:
        raise Refusal(404, "RevisionNotFound")
    return ACTS[act](hub, found[1], repo, revision, body)


def _repo(hub: Hub, name: str, token: str | None) -> Repo:
    repo = hub.repos.get(name)
    if repo is None or (repo.private and token is None):
        raise Refusal(404, "RepoNotFound")
    return repo


def _info(hub: Hub, name: str, repo: Repo, revision: str, body: bytes) -> Any:
    siblings = [{"rfilename": file} for file in repo.files(revision)]
    return {
        "id": name,
        "sha": repo.number(revision),
        "private": repo.private,
        "siblings": siblings,
        "tags": [],
        "downloads": 0,
    }


def _tree(hub: Hub, name: str, repo: Repo, revision: str, body: bytes) -> Any:
    return [
        {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for file, content in repo.files(revision).items()
    ]


def _preupload(hub: Hub, name: str, repo: Repo, revision: str, body: bytes) -> Any:
    files = json.loads(body)["files"]
    return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}


def _commit(hub: Hub, name: str, repo: Repo, revision: str, body: bytes) -> Any:
    files, message = dict(repo.files(revision)), ""
    for line in map(json.loads, body.splitlines()):
        value = line["value"]
        if line["key"] == "header":
            message = value["summary"]
        elif line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        else:
            assert line["key"] == "deletedFile", line
            del files[value["path"]]
    number = repo.commit(revision, files, message)
    return {"commitUrl": f"{hub.address}/{name}/commit/{number}", "commitOid": number}


ACTS = {"revision": _info, "tree": _tree, "preupload": _preupload, "commit": _commit}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            path = urlsplit(self.path).path
            hub.asked.append(f"{self.command} {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            try:
                made = answer(hub, self.command, path, token, body)
                status, headers = 200, {}
            except Refusal as refusal:
                made, status = refusal.document, refusal.status
                headers = {"X-Error-Code": refusal.code} if refusal.code else {}
            data = made if isinstance(made, bytes) else json.dumps(made).encode()
            if isinstance(made, bytes):
                commit = path.split("/resolve/")[1].split("/")[0]
                headers = {
                    "ETag": f'"{hashlib.sha1(made).hexdigest()}"',
                    "X-Repo-Commit": _repo(hub, path[1:].split("/resolve/")[0], token).number(commit),
                }
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = _answer

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def standing_in() -> Iterator[Hub]:
    """The hub, while it runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(20)


def reach(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path, token: str | None = WRITER) -> None:
    """Let the hub's client of this process ask the stand-in, with a cache of its own; it has read its variables already."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)


def variables(hub: Hub, home: Path) -> dict[str, str]:
    """The same for a process of its own, which has no token."""
    return {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
