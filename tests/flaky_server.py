"""A local web server with the faults that servers have."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Flaky:
    """What the server does.

    Attributes:
        content: what it serves, under any name.
        statuses: answers to the first requests instead of the content.
        drop_after: bytes after which it drops the connection, for each further request; None: not at all.
        ranges: whether it minds ranges.
        length: whether it says the length.
        shift: added to the range that it serves, as a server with an error does.
        requests: the Range header of every request, None for one without.
    """

    content: bytes
    statuses: list[int] = field(default_factory=list)
    drop_after: list[int | None] = field(default_factory=list)
    ranges: bool = True
    length: bool = True
    shift: int = 0
    requests: list[str | None] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(content: bytes, **faults: object) -> Iterator[Flaky]:
    """Serve `content`; the URL ends with "/"."""
    flaky = Flaky(content, **faults)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            flaky.requests.append(asked)
            if flaky.statuses:
                self.send_error(flaky.statuses.pop(0))
                return
            start, size = 0, len(flaky.content)
            if asked and flaky.ranges:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= size:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{size}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start += flaky.shift
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            else:
                self.send_response(200)
            if flaky.length:
                self.send_header("Content-Length", str(size - start))
            self.end_headers()
            end = flaky.drop_after.pop(0) if flaky.drop_after else None
            self.wfile.write(flaky.content[start : size if end is None else start + end])
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    flaky.url = f"http://127.0.0.1:{server.server_port}/"
    try:
        yield flaky
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
