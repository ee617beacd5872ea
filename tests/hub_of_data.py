"""A hub for the tests: a server on this machine that speaks what huggingface_hub asks for of data
sets, with their tree, their files by commit, and the errors that the hub answers with."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubData:
    """A data set of the hub. `gated`: nobody gets its files who has not been let in; `revisions`
    are the names of its one commit."""

    files: dict[str, bytes]
    gated: bool = False
    revisions: tuple[str, ...] = ("main", COMMIT)


@dataclass
class Hub:
    """What is on the hub by id, and the files that were fetched from it so far."""

    data: dict[str, HubData]
    url: str = ""
    fetched: list[str] = field(default_factory=list)


@contextmanager
def serve_hub(data: dict[str, HubData]) -> Iterator[Hub]:
    """Inside, the hub answers at `hub.url`."""
    hub = Hub(data)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is printed."""

        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, with_body: bool) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            is_api = parts[0] == "api"
            _, owner, name, *rest = parts[1:] if is_api else parts
            held = hub.data.get(f"{owner}/{name}")
            if held is None:
                return self.refuse(401, "RepoNotFound", with_body)
            revision = rest[1] if len(rest) > 1 else "main"
            if revision not in held.revisions:
                return self.refuse(404, "RevisionNotFound", with_body)
            if is_api:
                return self.send(json.dumps(listing(rest[:1], held)).encode(), with_body)
            if held.gated:
                return self.refuse(401, "GatedRepo", with_body)
            path = "/".join(rest[2:])
            if path not in held.files:
                return self.refuse(404, "EntryNotFound", with_body)
            if with_body:
                hub.fetched.append(path)
            content = held.files[path]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.send(content, with_body, {"ETag": etag, "X-Repo-Commit": COMMIT})

        def send(self, body: bytes, with_body: bool, headers: dict[str, str] | None = None) -> None:
            self.send_response(200)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def refuse(self, status: int, code: str, with_body: bool) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "2")
            self.end_headers()
            if with_body:
                self.wfile.write(b"{}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def listing(what: list[str], held: HubData) -> object:
    """The description of a data set, or its tree."""
    if what == ["tree"]:
        return [
            {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": hashlib.sha1(content).hexdigest(),
            }
            for path, content in held.files.items()
        ]
    siblings = [{"rfilename": path} for path in held.files]
    return {"id": "x/y", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
