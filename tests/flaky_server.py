"""A local web server with the faults that servers have, and a local proxy."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote, urlsplit


@dataclass
class Flaky:
    """What the server does; lists are used up from the front, one entry a request.

    Attributes:
        content: what it serves, under any name; or by path (without the first "/"), with 404 for all others.
        statuses: answers to the first requests instead of the content; retry_after: their Retry-After header.
        redirects: Location headers of the first requests.
        drop_after: bytes after which it drops the connection, for each further request; None: not at all.
        reset: whether dropping is a reset instead of an end.
        ranges: whether it minds ranges; if_range: whether it minds the version asked for with them.
        shift: added to the range that it serves, as a server with an error does.
        length: how it tells the length; length_error: added to what it says.
        etag, modified: headers ETag and Last-Modified.
        after_drop: called with this object when it has dropped a connection: the file changes, say.
        stall_at: bytes after which it waits for `release` to be set.
        paths, requests, headers: path, Range header (None without one) and all headers of every request.
    """

    content: bytes | Mapping[str, bytes]
    statuses: list[int] = field(default_factory=list)
    retry_after: str | None = None
    redirects: list[str] = field(default_factory=list)
    drop_after: list[int | None] = field(default_factory=list)
    reset: bool = False
    ranges: bool = True
    if_range: bool = True
    shift: int = 0
    length: Literal["told", "untold", "chunked"] = "told"
    length_error: int = 0
    etag: str | None = '"v1"'
    modified: str | None = None
    after_drop: "Callable[[Flaky], None] | None" = None
    stall_at: int | None = None
    release: threading.Event = field(default_factory=threading.Event)
    paths: list[str] = field(default_factory=list)
    requests: list[str | None] = field(default_factory=list)
    headers: list[Message] = field(default_factory=list)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    flaky: Flaky

    def do_GET(self) -> None:
        flaky, asked = self.flaky, self.headers.get("Range")
        flaky.paths.append(self.path)
        flaky.requests.append(asked)
        flaky.headers.append(self.headers)
        self.close_connection = True
        if flaky.statuses:
            return self.refuse(flaky.statuses.pop(0), "Retry-After", flaky.retry_after)
        if flaky.redirects:
            return self.refuse(302, "Location", flaky.redirects.pop(0))
        content = flaky.content
        if isinstance(content, Mapping):
            content = content.get(unquote(urlsplit(self.path).path).lstrip("/"))
            if content is None:
                return self.refuse(404)
        validator = self.headers.get("If-Range")
        if flaky.if_range and validator not in (None, flaky.etag, flaky.modified):
            asked = None
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and flaky.ranges else None
        if start is not None and start >= len(content):
            return self.refuse(416, "Content-Range", f"bytes */{len(content)}")
        if start is None:
            self.send_response(200)
        else:
            start += flaky.shift
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in (("ETag", flaky.etag), ("Last-Modified", flaky.modified)):
            if value:
                self.send_header(name, value)
        self.send(content[start or 0 :])

    def refuse(self, status: int, name: str = "", value: str | None = None) -> None:
        self.send_response(status)
        if value is not None:
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, body: bytes) -> None:
        """The end of the headers and `body`, as far as the faults let it."""
        flaky = self.flaky
        if flaky.length == "told":
            self.send_header("Content-Length", str(len(body) + flaky.length_error))
        elif flaky.length == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end = flaky.drop_after.pop(0) if flaky.drop_after else None
        sent, rest = body[:end], b""
        if flaky.stall_at is not None:
            sent, rest = sent[: flaky.stall_at], sent[flaky.stall_at :]
        for piece in (sent, rest):
            if piece:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if flaky.length == "chunked" else piece)
                self.wfile.flush()
            if rest:
                flaky.release.wait()
        if end is None:
            if flaky.length == "chunked":
                self.wfile.write(b"0\r\n\r\n")
            return
        if flaky.after_drop:
            flaky.after_drop(flaky)
        if flaky.reset:  # closing with no time to linger sends a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what the tests are about."""


@contextmanager
def _running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serve(content: bytes | Mapping[str, bytes], **faults: object) -> Iterator[Flaky]:
    """Serve `content`; the URL ends with "/"."""
    flaky = Flaky(content, **faults)
    with _running(type("Handler", (_Handler,), {"flaky": flaky})) as flaky.url:
        try:
            yield flaky
        finally:
            flaky.release.set()


@contextmanager
def proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy that forwards plain requests and refuses tunnels; its URL and the targets that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            target = urlsplit(self.path)
            connection = HTTPConnection(target.netloc, timeout=5)
            connection.request("GET", target.path, headers=dict(self.headers))
            answer = connection.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_CONNECT(self) -> None:
            asked.append(self.path)
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            pass

    with _running(Handler) as url:
        yield url, asked
