"""A server on this machine that speaks the Hugging Face hub's protocol, well or badly."""

import hashlib
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """A server with the hub's protocol: file metadata in headers, weights behind a redirect, errors with a code.

    Repositories whose name says so misbehave: ``gated``, ``down`` (503), ``silent`` (accepts, and never answers),
    ``truncated`` (every body breaks off), ``flaky`` (the first one does, and ranges are served).
    """

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _HubRequest)
        self.repositories = repositories
        self.requests: list[str] = []
        self.broken_off = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what some tests are about."""


class _HubRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        parts = self.path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository = "/".join(parts[2:4])
            files = [{"rfilename": name} for name in self.server.repositories[repository]]
            return self.answer(json.dumps({"id": repository, "sha": COMMIT, "siblings": files}).encode())
        through_redirect = parts[0] == "cdn"
        if through_redirect:
            parts = parts[1:]
        repository, name = "/".join(parts[:2]), "/".join(parts[4:])
        behaviour = parts[1]
        if behaviour == "silent":
            time.sleep(5)
        if behaviour == "down":
            return self.refuse(503, "")
        if behaviour == "gated":
            return self.refuse(403, "GatedRepo")
        if repository not in self.server.repositories:
            return self.refuse(401, "RepoNotFound")
        data = self.server.repositories[repository].get(name)
        if data is None:
            return self.refuse(404, "EntryNotFound")
        if name.endswith((".safetensors", ".bin")) and not through_redirect:
            digest = hashlib.sha256(data).hexdigest()
            return self.answer(b"", 302, {
                "Location": f"{self.server.address}/cdn{self.path}", "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(data)),
            })  # fmt: skip
        return self.answer(data)

    def refuse(self, status: int, code: str) -> None:
        self.answer(b"", status, {"X-Error-Code": code} if code else {})

    def answer(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        headers = dict(headers or {})
        first = 0
        behaviour = self.path.removeprefix("/cdn").split("/")[2]
        if "Range" in self.headers and behaviour == "flaky":
            first = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            status, headers["Content-Range"] = 206, f"bytes {first}-{len(data) - 1}/{len(data)}"
        self.send_response(status)
        for key, value in {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', **headers}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        if self.command == "HEAD":
            return
        breaks = behaviour == "truncated" or (behaviour == "flaky" and not first)
        if breaks and self.path.startswith("/cdn"):
            self.server.broken_off += 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data[first:])
