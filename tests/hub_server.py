"""A server on this machine that speaks the Hugging Face hub's protocol, well or badly."""

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
#: Files in one answer to "what is there", which is a thousand on the hub.
PAGE = 2
#: Endings of files that lie in the large-file store, behind a redirect.
LARGE = (".safetensors", ".bin", ".parquet")


def commit_of(revision: str) -> str:
    """The commit that a branch or tag of every repository stands for."""
    return COMMIT if revision == "main" else hashlib.sha1(revision.encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """A server with the hub's protocol: file metadata in headers, weights behind a redirect, errors with a code.

    `repositories` has the files by ``org/name``, or ``datasets/org/name``, of the branch main; of another revision by
    the same with ``@revision`` behind. Repositories whose name says so misbehave: ``gated``, ``down`` (503), ``silent``
    (accepts, and never answers), ``silent-list`` (the same for the list of files), ``truncated`` (every body breaks
    off), ``flaky`` (the first one does, and ranges are served), ``lying`` (sends other bytes than it says).
    """

    daemon_threads = True

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _HubRequest)
        self.repositories = repositories
        self.requests: list[str] = []
        self.broken_off = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what some tests are about."""


@contextmanager
def serve_hub(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[Hub]:
    """A hub with these repositories."""
    server = Hub(repositories)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Refusal(Exception):
    """An answer of the hub that is an error: its status and its code."""


#: What the paths that the client asks for look like; names and revisions come quoted.
_API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)")
_FILE = re.compile(
    r"(?P<through_redirect>/cdn)?/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)"
)


class _HubRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = urlsplit(self.path).path
        try:
            for pattern, answer in ((_TREE, self.tree), (_API, self.info), (_FILE, self.file)):
                if match := pattern.fullmatch(path):
                    found = {key: unquote(value or "") for key, value in match.groupdict().items()}
                    self.behaviour = found["name"].split("/")[1]
                    return answer(**found)
            raise _Refusal(404, "")
        except _Refusal as refusal:
            status, code = refusal.args
            self.answer(b"", status, {"X-Error-Code": code} if code else {})

    def files(self, kind: str, name: str, revision: str) -> tuple[Mapping[str, bytes], str]:
        """(files, commit) of a revision of a repository, where it has one."""
        if self.behaviour == "silent":
            time.sleep(5)
        if self.behaviour == "down":
            raise _Refusal(503, "")
        key = f"{'datasets/' if kind.startswith('datasets') else ''}{name}"
        if key not in self.server.repositories and self.behaviour != "gated":
            raise _Refusal(401, "RepoNotFound")
        revisions = {"main": key} | {
            other.split("@")[1]: other for other in self.server.repositories if other.startswith(f"{key}@")
        }
        for branch, files in revisions.items():
            if revision in ("", branch, commit_of(branch)) and (revision or branch == "main"):
                return self.server.repositories.get(files, {}), commit_of(branch)
        raise _Refusal(404, "RevisionNotFound")

    def info(self, kind: str, name: str, revision: str) -> None:
        _, commit = self.files(kind, name, revision)
        content = {"id": name, "sha": commit}
        if "cardData" in parse_qs(urlsplit(self.path).query).get("expand", []):
            content["cardData"] = {"license": "cc0-1.0"}
        self.answer(json.dumps(content).encode())

    def tree(self, kind: str, name: str, revision: str) -> None:
        """One page of the list of files, and where the next one is."""
        if self.behaviour == "silent-list":
            time.sleep(5)
        files, _ = self.files(kind, name, revision)
        query = parse_qs(urlsplit(self.path).query)
        assert query["recursive"] == ["true"]
        entries = [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in _folders(files)]
        entries += [_listed(file, data) for file, data in files.items()]
        first = int(query.get("cursor", ["0"])[0])
        headers = {}
        if first + PAGE < len(entries):
            here = f"{self.server.address}{urlsplit(self.path).path}"
            headers["Link"] = f'<{here}?recursive=true&cursor={first + PAGE}>; rel="next"'
        self.answer(json.dumps(entries[first : first + PAGE]).encode(), headers=headers)

    def file(self, kind: str, name: str, revision: str, file: str, through_redirect: str) -> None:
        if self.behaviour == "gated":
            raise _Refusal(403, "GatedRepo")
        files, commit = self.files(kind, name, revision)
        if file not in files:
            raise _Refusal(404, "EntryNotFound")
        data = files[file]
        if file.endswith(LARGE) and not through_redirect:
            return self.answer(b"", 302, {
                "Location": f"{self.server.address}/cdn{self.path}", "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data)),
            })  # fmt: skip
        if self.behaviour == "lying":
            data = data[:-1] + bytes([data[-1] ^ 1])
        breaks = self.behaviour == "truncated" or (self.behaviour == "flaky" and "Range" not in self.headers)
        self.answer(data, headers={"X-Repo-Commit": commit}, breaks=breaks and bool(through_redirect))

    def answer(
        self, data: bytes, status: int = 200, headers: Mapping[str, str] | None = None, breaks: bool = False
    ) -> None:
        headers = dict(headers or {})
        first = 0
        if "Range" in self.headers and self.behaviour == "flaky":
            first = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            status, headers["Content-Range"] = 206, f"bytes {first}-{len(data) - 1}/{len(data)}"
        self.send_response(status)
        for key, value in {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', **headers}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        if self.command == "HEAD":
            return
        if breaks:
            self.server.broken_off += 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data[first:])


def _folders(files: Mapping[str, bytes]) -> list[str]:
    return sorted({file.rsplit("/", 1)[0] for file in files if "/" in file})


def _listed(file: str, data: bytes) -> dict[str, object]:
    """A file as the hub lists it: only those in the large-file store with a SHA-256."""
    entry: dict[str, object] = {"type": "file", "path": file, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}
    if file.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry
