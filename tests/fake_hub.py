"""A hub on this machine: as much of the Hugging Face Hub's HTTP interface as pushing and fetching small files takes."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_TOKEN = "Bearer hf_of_the_tests"


@dataclass
class FakeHub:
    """Repositories by name: commits, the newest last, each with all its files.

    Attributes:
        private: repositories that were asked to be.
        requests: method and path of everything that came.
    """

    url: str = ""
    commits: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes] | None:
        """Of a commit or of the newest one; None where there is no such commit."""
        found = self.commits[repository]
        if revision == "main":
            return found[-1][1] if found else {}
        return dict(found).get(revision)

    def environment(self, home: object) -> dict[str, str]:
        """What makes the client of a new process speak to this hub, with a home of its own."""
        token = _TOKEN.removeprefix("Bearer ")
        return {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_TOKEN": token}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that runs until the end of the block."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            hub.requests.append(f"{self.command} {self.path}")

        def do_HEAD(self) -> None:
            self._resolve()

        def do_GET(self) -> None:
            self._resolve()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = self.path.strip("/").split("/")
            if self.path == "/api/validate-yaml":
                self._json({"errors": [], "warnings": []})
            elif self.headers.get("Authorization") != _TOKEN:
                self._json({"error": "who are you?"}, 401)
            elif self.path == "/api/repos/create":
                self._create(json.loads(body))
            elif parts[4] == "preupload":
                names = [one["path"] for one in json.loads(body)["files"]]
                self._json({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
            else:
                self._commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])

        def _create(self, asked: dict[str, Any]) -> None:
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            known = name in hub.commits
            hub.commits.setdefault(name, [])
            if asked.get("private") or asked.get("visibility") == "private":
                hub.private.add(name)
            self._json({"url": f"{hub.url}/{name}"}, 409 if known else 200)

        def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
            files = dict(hub.files(name) or {})
            for line in (line["value"] for line in lines if line["key"] == "file"):
                files[line["path"]] = base64.b64decode(line["content"])
            oid = hashlib.sha1(f"{name}{len(hub.commits[name])}".encode()).hexdigest()
            hub.commits[name].append((oid, files))
            self._json({"commitUrl": f"{hub.url}/{name}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None})

        def _resolve(self) -> None:
            parts = self.path.strip("/").split("/")
            if parts[2:3] != ["resolve"]:
                self._json({}, 404)
                return
            name, revision, rest = "/".join(parts[:2]), parts[3], parts[4:]
            if name not in hub.commits:
                self._json({}, 404, {"X-Error-Code": "RepoNotFound"})
                return
            files = hub.files(name, revision)
            if files is None:
                self._json({}, 404, {"X-Error-Code": "RevisionNotFound"})
            elif "/".join(rest) not in files:
                self._json({}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commits[name][-1][0]})
            else:
                oid = hub.commits[name][-1][0] if revision == "main" else revision
                content = files["/".join(rest)]
                self._send(content, 200, {"X-Repo-Commit": oid, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

        def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self._send(json.dumps(value).encode(), status, headers or {})

        def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler
