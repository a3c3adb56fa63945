"""Whatever is sent to the page: an answer or one line why not, nothing written, nothing run, and it goes on as before.

Hypothesis makes the questions and the requests; the server is a real one, in a process of its own that tells what it
does (watched_page.py). CI tries a few, the nightly profile many.
"""

import io
import json
import re
import socket
import struct
import zipfile
import zlib
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import hypothesis.strategies as st
import pytest
from fuzzing import check, damage, few_or_many
from page_server import PATIENCE, Elements, PageServer, ids_of, serve_page
from picture import picture
from PIL import Image
from stage_runner import ROOT, content

from stages.serve.config import MAX_TEXT

#: What an answer must not have as it was sent.
MARK = "<x-fuzz"
EVIL = (
    f"{MARK} onload=alert(1)>", f'"><script>{MARK}</script>', f"'><img src=x onerror='{MARK}'>", f"</title>{MARK}>",
    "{{7*7}}", "javascript:alert(1)", "\u202eright to left\u202c", "\u05d0\u05d1", "\0", "\r\nX-Fuzz: 1", "\ud800",
    "\udfff\ud800", "e\u0301\u0302", "\U0001f469\u200d\U0001f469", "\ufeff", "%00", "../" * 9 + "etc/passwd",
    "/etc/passwd", "file:///etc/passwd",
)  # fmt: skip
#: MiB that it may take more than before: for an image of as many pixels as are decoded, see docs/page.md.
MEMORY = 500
#: What it may say on its log: that the client is to blame.
SAID = re.compile(r"WARNING:  (Invalid HTTP request received\.|Unsupported upgrade request\.|No supported WebSocket.*)")


@pytest.fixture(scope="module")
def served(served_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    program = [str(ROOT / "tests" / "watched_page.py")]
    with serve_page(served_project, tmp_path_factory.mktemp("served") / "temporary", program) as page:
        yield page


class Watch:
    """What the page says and does while it is asked."""

    def __init__(self, page: PageServer) -> None:
        self._page = page
        self._answers = self._searched()
        self._files = content(page.project)
        self._place, self._memory = page.log.stat().st_size, self._most()

    def answered(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Judge an answer, and what was done for it."""
        self.silent()
        assert status < 300 or status == 304 or 400 <= status < 500, (status, body)
        assert b"Traceback" not in body and "x-fuzz" not in headers
        kind = headers.get("content-type", "")
        if kind.startswith("text/html"):
            assert MARK.encode() not in body
            assert headers["x-content-type-options"] == "nosniff" and "content-security-policy" in headers

    def silent(self) -> None:
        """It has said nothing that matters, and has not done what it must not."""
        if self._page.log.stat().st_size > self._place:
            new = self._page.log.read_bytes()[self._place :]
            self._place += len(new)
            lines = new.decode(errors="backslashreplace").splitlines()
            said = [line for line in lines if not SAID.fullmatch(line)]
            assert said == [], "\n".join(said)

    def unharmed(self) -> None:
        """It answers as before, has written nothing, and needs no more memory than for an image."""
        assert self._searched() == self._answers
        self.silent()
        assert content(self._page.temporary) == {}
        assert content(self._page.project) == self._files
        assert self._most() < self._memory + MEMORY

    def _searched(self) -> list[str]:
        found = [self._page.search(query, top=9) for query in ("a dog and a boat", 5, picture(3))]
        assert [(status, len(ids_of(html))) for status, html in found] == [(200, 9)] * 3
        return [html for _, html in found]

    def _most(self) -> int:
        """MiB since it has begun."""
        status = Path(f"/proc/{self._page.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024


@pytest.fixture
def watch(served: PageServer) -> Iterator[Watch]:
    watching = Watch(served)
    yield watching
    watching.unharmed()


# ---- questions

words = st.one_of(
    st.text(st.characters(), max_size=30),  # surrogates, too
    st.lists(st.one_of(st.sampled_from(EVIL), st.text(max_size=8)), min_size=1, max_size=4).map("".join),
    st.builds(str.__mul__, st.sampled_from([*EVIL, "a ", "\U0001f642", "\ufdfa", "\xdf", "&lt;"]), st.integers(1, 600)),
)
numbers = st.one_of(
    st.integers(-3, 130), st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([2**63, 2**63 - 1, 10**400])
)
keys = st.one_of(st.sampled_from(["text", "id"]), words)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=8,
)
#: The options of a question, as its address has them; some of them twice.
options = st.lists(
    st.tuples(st.sampled_from(["top", "rerank", "radius", "model"]), st.one_of(numbers.map(str), words)), max_size=3
).map(lambda pairs: urlencode(pairs, errors="surrogatepass"))


def asked(page: PageServer, watch: Watch, body: bytes, kind: str, address: str = "top=3") -> int:
    """The status of a search whose answer is judged."""
    status, headers, answer = page.ask("POST", f"/search?{address}", body, {"Content-Type": kind})
    watch.answered(status, headers, answer)
    assert status in (200, 400, 413, 422)
    html = answer.decode()
    Elements(html).require_harmless()
    assert status == 200 or (html.startswith('<p class="cb-failure"') and html.count("<") == 2), html
    return status


@few_or_many(100, 5000)
def test_texts(examples, served, watch):
    """Any text finds something, unless it is too long, empty, or no Unicode."""

    def finds(text: str) -> None:
        sent = json.dumps({"text": text})
        text = json.loads(sent)["text"]  # two halves of a character that meet are one
        status = asked(served, watch, sent.encode(), "application/json")
        if len(text) > MAX_TEXT:
            assert status in (400, 413)
        elif re.search("[\ud800-\udfff]", text):
            assert status == 400
        else:
            assert status == (200 if text.strip() else 422)

    check(words, examples, finds)


@few_or_many(200, 8000)
def test_questions(examples, served, watch):
    """JSON of any shape in any encoding, also damaged, with any options."""
    encodings = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-7"])
    valid = st.one_of(st.just({"text": "a dog"}), st.integers(0, 340).map(lambda image: {"id": image}))
    whole = st.builds(
        lambda value, plain, encoding: json.dumps(value, ensure_ascii=plain).encode(encoding, "surrogatepass"),
        st.one_of(valid, values, st.dictionaries(st.sampled_from(["text", "id"]), values)), st.booleans(), encodings,
    )  # fmt: skip
    deep = st.builds(bytes.__mul__, st.sampled_from([b"[", b'{"text":', b'[{"id":']), st.integers(1, 3000))
    body = st.one_of(whole, whole.flatmap(damage), deep)
    kinds = st.sampled_from(["application/json", "application/json; charset=utf-16", "application/JSON", "text/plain"])
    check(st.tuples(body, kinds, options), examples, lambda question: asked(served, watch, *question))


# ---- uploads


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int = 1, colour: int = 0, extra: bytes = b"") -> bytes:
    """A PNG that claims so many pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def one_colour(width: int, height: int, mode: str, kind: str) -> bytes:
    """An image of few bytes whatever its size."""
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, kind)
    return buffer.getvalue()


def moving(frames: int) -> bytes:
    buffer = io.BytesIO()
    first, *others = (Image.new("L", (90, 90), number % 256) for number in range(frames))
    first.save(buffer, "GIF", save_all=True, append_images=others)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../out.png", picture(0))
    return buffer.getvalue()


HTML = f"<html>{MARK}><script>alert(1)</script></html>".encode()
SVG = (
    b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">'
    b'<!ENTITY f SYSTEM "file:///etc/passwd">]><svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)">&b;&f;</svg>'
)
BOMB = zlib.compress(bytes(10**8))
#: Of two kinds at once, or of one that only looks like an image.
ODD = {
    "html": HTML, "svg": SVG, "gif of html": b"GIF89a/*" + HTML, "image, html": picture(0) + HTML,
    "comment": picture(0, kind="JPEG")[:2] + b"\xff\xfe" + struct.pack(">H", len(HTML) + 2) + HTML
    + picture(0, kind="JPEG")[2:],
    "image, archive": picture(0) + zipped(), "archive": zipped(), "pdf": b"%PDF-1.4\n" + HTML, "bmp": b"BM" + HTML,
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "path": b"../../params.yaml", "address": b"http://127.0.0.1/image.png", "frames": moving(300),
    "text bomb": png(9, 9, extra=chunk(b"zTXt", b"a\0\0" + BOMB)),
    "profile bomb": png(9, 9, extra=chunk(b"iCCP", b"a\0\0" + BOMB)),
    "wide": one_colour(65_500, 2, "L", "JPEG"), "high": one_colour(1, 65_000, "1", "PNG"),
    "large": one_colour(4096, 4096, "1", "PNG"), "larger": one_colour(4097, 4096, "L", "PNG"),
    "alpha": one_colour(3000, 3000, "RGBA", "PNG"), "pages": one_colour(2000, 3000, "1", "TIFF"),
    "float": one_colour(20, 30, "F", "TIFF"), "deep": one_colour(20, 30, "I;16", "PNG"),
}  # fmt: skip
sizes = st.one_of(st.integers(0, 70_000), st.sampled_from([2**31 - 1, 2**32 - 1]))
claims = st.one_of(
    st.builds(png, sizes, sizes, st.sampled_from([0, 1, 8, 16]), st.integers(0, 6)),
    st.builds(lambda w, h: b"GIF89a" + struct.pack("<HH", w % 2**16, h % 2**16) + bytes(20), sizes, sizes),
    st.builds(lambda w, h: b"P6 %d %d 255\n" % (w, h) + bytes(99), sizes, sizes),
    st.builds(lambda w, h: b"BM" + bytes(12) + struct.pack("<IIIHH", 40, w, h, 1, 24) + bytes(99), sizes, sizes),
)
PICTURES = [picture(0, size=24, kind=kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")]


@pytest.mark.parametrize("name", ODD)
def test_odd_uploads(name, served, watch):
    asked(served, watch, ODD[name], "application/octet-stream")


@few_or_many(250, 10_000)
def test_uploads(examples, served, watch):
    """Damaged images, files of several kinds at once, bombs, and bytes of no kind; said to be of any type."""
    magic = st.sampled_from([data[:12] for data in PICTURES])
    body = st.one_of(
        st.sampled_from(PICTURES).flatmap(damage), st.sampled_from(sorted(ODD)).map(ODD.__getitem__), claims,
        st.builds(bytes.__add__, magic, st.binary(max_size=200)), st.binary(max_size=200),
    )  # fmt: skip
    kinds = st.sampled_from(["application/octet-stream", "image/svg+xml", "text/html", "multipart/form-data", ""])
    check(st.tuples(body, kinds, options), examples, lambda question: asked(served, watch, *question))


# ---- requests

#: What the page has, and what Gradio has.
PATHS = (
    "/", "/search", "/map", "/beginning", "/thumbnail/3", "/thumbnail/", "/page.js", "/page.css", "/theme.css",
    "/favicon.ico", "/static/img/logo.svg", "/static/", "/assets/", "/gradio_api/upload", "/gradio_api/file=",
    "/gradio_api/file/", "/gradio_api/proxy=http://127.0.0.1/", "/gradio_api/queue/join", "/gradio_api/queue/data",
    "/gradio_api/call/search", "/gradio_api/run/predict", "/gradio_api/api/predict", "/gradio_api/component_server",
    "/gradio_api/deep_link", "/gradio_api/heartbeat/x", "/gradio_api/info", "/gradio_api/stream/x/y/0/playlist.m3u8",
    "/gradio_api/custom_component/x/client/component/index.js", "/gradio_api/dev/reload", "/gradio_api/mcp/sse",
    "/gradio_api/reset", "/gradio_api/cancel", "/gradio_api/vibe-code/", "/gradio_api/upload_progress", "/config",
    "/login", "/logout", "/token", "/monitoring", "/monitoring/summary", "/manifest.json", "/robots.txt", "/pwa_icon/9",
    "/svelte/", "/docs", "/openapi.json", "/startup-events", "/app_id",
)  # fmt: skip
STEPS = (
    "..", ".", "%2e%2e", "..%2f..", "..\\", "%5c..", "%00", "%c0%ae", "%ff", "", "etc/passwd", "params.yaml", "a" * 300,
    "a/" * 2100, "data", ".env", "x;y", "*", "~root", "CON", "%", "%zz", "\xe9", "_", "img",
)  # fmt: skip
token = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ-_!#$%&'*+.^`|~", min_size=1, max_size=12)
methods = st.one_of(
    st.just("GET"), st.just("POST"), token,
    st.sampled_from(["HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PROPFIND"]),
)  # fmt: skip
steps = st.one_of(st.sampled_from(STEPS), words.map(lambda text: quote(text, errors="surrogatepass")))
paths = st.one_of(
    st.just("/"), st.sampled_from(PATHS),
    st.builds(
        lambda path, more: path + "/".join(more),
        st.sampled_from([*PATHS, "http://evil.example/", "*", "//evil.example/", "/./"]), st.lists(steps, max_size=4),
    ),
)  # fmt: skip
ASKED = ("page", "deep_link", "session_hash", "__theme", "view", "all_endpoints", "path", "url", "logs")
queries = st.one_of(
    options,
    st.lists(st.tuples(st.sampled_from(ASKED), words), min_size=1, max_size=3).map(
        lambda pairs: urlencode(pairs, errors="surrogatepass")
    ),
)  # fmt: skip
#: Headers of a kind, and values that have something to do with them.
HEADERS = (
    (
        ("Host", "X-Forwarded-Host", "X-Gradio-Server", "X-Forwarded-Proto", "X-Forwarded-For", "X-Forwarded-Prefix",
         "Forwarded", "X-Original-URL", "Origin", "Referer"),
        ("evil.example", "[::1", "localhost:99999999", "localhost:port", "<x-fuzz>", "127.0.0.1, evil", "", "::: x",
         "999.9.9.9", "[::1%<x-fuzz>]", "http://evil.example/"),
    ),
    (
        ("Range", "If-Range", "If-None-Match", "If-Modified-Since"),
        ("bytes=0-", "bytes=5-2", "bytes=a-b", "bytes=0-1,3-4,9-", "bytes=-99999999999", "*", '"x"',
         "Thu, 99 Jan 1970 00:00:00 GMT", "bytes=" + "0-1," * 900),
    ),
    (
        ("Accept", "Accept-Encoding", "Accept-Language", "Content-Type", "Content-Encoding", "Transfer-Encoding",
         "Content-Length", "Expect", "Upgrade", "Connection", "Cookie", "Authorization", "Sec-Fetch-Site",
         "Sec-Fetch-Dest", "X-HTTP-Method-Override", "session_hash"),
        ("gzip", "br;q=nan", "chunked", "100-continue", "websocket", "application/json", "*/*", "cross-site",
         "same-origin", "document", "access-token=x", "Basic Og==", "DELETE", "-1", "9" * 5000, "\xb2",
         "close, upgrade", "multipart/form-data; boundary="),
    ),
)  # fmt: skip
latin = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20)
headers = st.lists(
    st.one_of([st.tuples(st.sampled_from(some), st.one_of(st.sampled_from(of), latin)) for some, of in HEADERS]),
    min_size=1, max_size=3,
)  # fmt: skip
gradio = st.fixed_dictionaries({
    "data": values, "fn_index": numbers, "session_hash": words, "event_data": values, "trigger_id": numbers,
}).map(lambda value: json.dumps(value).encode())  # fmt: skip
form = st.lists(st.tuples(words, st.binary(max_size=50)), max_size=3).map(lambda files: b"".join([
    *(b'--x\r\nContent-Disposition: form-data; name="files"; filename="%b"\r\n\r\n%b\r\n' % (
        name.encode(errors="surrogatepass"), data) for name, data in files), b"--x--\r\n",
]))  # fmt: skip
bodies = st.one_of(
    st.tuples(st.sampled_from(["application/json", "text/plain"]), gradio),
    st.tuples(st.just("multipart/form-data; boundary=x"), form), st.tuples(words, st.binary(max_size=60)),
)  # fmt: skip


#: Those with which more could come than has come.
OPEN = {"Content-Length", "Transfer-Encoding", "Connection", "Expect", "Upgrade"}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes, bool]:
    """The method of a request, all its bytes, and whether the server may wait for more.

    What is all wrong is refused at once; so mostly one thing alone is.
    """
    wrong = draw(st.sampled_from(["method", "path", "query", "headers", "body", "all"]))

    def part(name: str, whatever: st.SearchStrategy, good: st.SearchStrategy) -> Any:
        return draw(whatever if wrong in (name, "all") else good)

    method = part("method", methods, st.sampled_from(["POST"] if wrong == "body" else ["GET"]))
    path = part("path", paths, st.sampled_from(["/search"] if wrong == "body" else ["/", "/static/img/logo.svg"]))
    query, more = part("query", queries, st.just("")), part("headers", headers, st.just([]))
    kind, body = part("body", bodies, st.just(("", b"")))
    fixed = [("Host", "127.0.0.1"), ("Connection", "close")]
    if kind:
        fixed.append(("Content-Type", kind))
    if body:
        fixed.append(("Content-Length", str(len(body))))
    target = path + (f"?{query}" if query else "")
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in [*fixed, *more]), "", ""]
    is_open = method == "CONNECT" or not OPEN.isdisjoint(name for name, _ in more)
    return method, "\r\n".join(lines).encode("latin-1", "replace") + body, is_open


def sent(page: PageServer, method: str, request: bytes, is_open: bool) -> tuple[int, dict[str, str], bytes] | None:
    """The answer to bytes; None where there is none."""
    with socket.create_connection(("127.0.0.1", page.port), PATIENCE) as connection:
        try:
            connection.sendall(request)
            if is_open:
                connection.shutdown(socket.SHUT_WR)  # the server may then go without an answer
            answer = HTTPResponse(connection, method=method)
            answer.begin()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        except (HTTPException, ConnectionError):
            return None


@few_or_many(800, 30_000)
def test_requests(examples, served, watch):
    """Any method, path, header and body."""

    def answers(request: tuple[str, bytes, bool]) -> None:
        answer = sent(served, *request)
        if answer:
            watch.answered(*answer)
        else:
            assert request[2]
            watch.silent()

    check(requests(), examples, answers)


@few_or_many(150, 8000)
def test_bytes(examples, served, watch):
    """Damaged requests, several at once, and what is none."""
    good = st.sampled_from([
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /search?top=3 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n"
        b'{"id":3}',
        b"POST /search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ])  # fmt: skip
    parts = st.one_of(good, good.flatmap(damage), st.binary(max_size=60))
    several = st.lists(parts, min_size=1, max_size=3).map(b"".join)

    def answers(data: bytes) -> None:
        answer = sent(served, "GET", data, True)
        watch.answered(*answer) if answer else watch.silent()

    check(several, examples, answers)
