"""A hub on this machine: it speaks the protocol by which huggingface_hub uploads, keeps what it is
sent, and refuses what a hub refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_this_test"
SMALL = 4096  # bytes of a file that is sent within the commit; larger ones are sent by themselves


class Hub(ThreadingHTTPServer):
    """`repos` maps each repository to whether it is private, `files` to what was committed, by
    repository and path; `asked` are the requests in order."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One request. Paths are those that huggingface_hub asks for."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *values: object) -> None:
        """Says nothing."""

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, status: int, tree: Any) -> None:
        body = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def may(self) -> bool:
        """Replies 401 to whoever has not the token."""
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.reply(401, {"error": "Invalid username or password."})
        return False

    def do_PUT(self) -> None:
        """A large file, to the address that it was given. The address is the permission."""
        self.server.asked.append(f"PUT {self.path}")
        content, name = self.body(), self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != name:
            return self.reply(400, {"error": "another content than was announced"})
        self.server.blobs[name] = content
        self.reply(200, {})

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        content = self.body()
        if not self.may():
            return
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            return self.create(json.loads(content))
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            return self.batch(json.loads(content))
        if path == "/verify":
            asked = json.loads(content)
            held = self.server.blobs.get(asked["oid"], b"")
            return self.reply(200 if len(held) == asked["size"] else 400, {})
        if "/preupload/" in path:
            return self.reply(200, {"files": list(map(upload_mode, json.loads(content)["files"]))})
        if "/commit/" in path:
            repo = "/".join(path.split("/")[3:5])
            return self.commit(repo, [json.loads(line) for line in content.splitlines() if line])
        self.reply(404, {"error": f"no {path}"})

    def create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if asked.get("organization") == "forbidden":
            return self.reply(403, {"error": "You don't have the rights to create a model here"})
        if repo in self.server.repos:
            told = {"error": "You already created this model repo"}
            return self.reply(409, told | {"url": f"{self.server.url}/{repo}"})
        private = asked.get("visibility") == "private" or asked.get("private", False)
        self.server.repos[repo] = private
        self.reply(200, {"url": f"{self.server.url}/{repo}", "name": repo})

    def batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for one in asked["objects"]:
            place = {"href": f"{self.server.url}/store/{one['oid']}"}
            actions = {"upload": place, "verify": {"href": f"{self.server.url}/verify"}}
            objects.append({"oid": one["oid"], "size": one["size"], "actions": actions})
        self.reply(200, {"transfer": "basic", "objects": objects})

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        if repo not in self.server.repos:
            return self.reply(404, {"error": "Repository not found"})
        files = self.server.files.setdefault(repo, {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        sha = hashlib.sha1(repr(sorted(files)).encode()).hexdigest()
        address = f"{self.server.url}/{repo}/commit/{sha}"
        self.reply(200, {"success": True, "commitOid": sha, "commitUrl": address})


def upload_mode(file: dict[str, Any]) -> dict[str, Any]:
    """Returns how a file is to be sent."""
    mode = "regular" if file["size"] <= SMALL else "lfs"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}


@contextmanager
def local_hub() -> Iterator[Hub]:
    """Inside, the hub answers."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
