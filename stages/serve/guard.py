"""What stands before the page: which requests get through, what may be held at a time, and what browsers are told.

Gradio has routes that write uploads to disk, give out files by their path and fetch other servers' pages. The page
needs none of them, so that only what it does need gets through; see ``docs/page.md``.
"""

import asyncio
import ipaddress
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

#: What may be asked for: the page with its own files, and Gradio's program for the browser, a part of its package.
PATHS = re.compile(
    r"/|/page\.(?:js|css)|/map|/beginning|/thumbnail/\d{1,18}|/favicon\.ico|/theme\.css"
    r"|/(?:assets|static)(?:/[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}){1,4}"
)
SEARCH = "/search"

#: Headers that are passed on; so Gradio takes none of its own from a visitor.
HEARD = frozenset((
    b"host", b"x-forwarded-host", b"x-forwarded-proto", b"accept-encoding", b"content-type", b"content-length",
))  # fmt: skip
#: A name in them, which Gradio makes an address of; :func:`_is_host` has the other kind.
DOMAIN = re.compile(r"(?:[A-Za-z0-9_-]+\.)*[A-Za-z0-9_-]*[A-Za-z_-][A-Za-z0-9_-]*\.?")

#: Characters of a domain's name at most.
LONGEST_NAME = 253

#: The browser itself keeps the page from asking other servers for anything, whatever got into it.
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """An application that lets through to `inner` what the page needs and answers everything else itself.

    Args:
        hosts: names that the page is called by, without ports; others are refused, as a page of another server would
            send them that has its name point here. None: any name.
    """

    def __init__(self, inner: Application, hosts: Iterable[str] | None) -> None:
        self._inner = inner
        self._hosts = None if hosts is None else frozenset(hosts)
        self._headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
            return

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if not pair[0].lower().startswith(b"access-control-")]
                message = {**message, "headers": [*kept, *self._headers]}
            await send(message)

        refused = (403, b"not here") if scope["type"] != "http" else self._refused(scope)
        if refused is None:
            await self._inner(_bare(scope), receive, send_guarded)
        elif scope["type"] == "http":
            start = {"type": "http.response.start", "status": refused[0], "headers": [(b"content-type", b"text/plain")]}
            await send_guarded(start)
            await send({"type": "http.response.body", "body": refused[1]})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refused(self, scope: Scope) -> tuple[int, bytes] | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._hosts is not None and _name(headers.get(b"host", b"").decode("latin-1")) not in self._hosts:
            return 403, b"this page is not known by that name"
        named = (value for name, value in scope["headers"] if name.lower() in (b"host", b"x-forwarded-host"))
        if not all(map(_is_host, named)):  # each of them: of one that is repeated, others look at the first
            return 400, b"no name of a host"
        foreign = headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none")
        if foreign and not (scope["path"] == "/" and headers.get(b"sec-fetch-dest") == b"document"):  # a link to here
            return 403, b"asked for by another page"
        # Both forms of the path: what is escaped in one must not be something else in the other.
        raw = scope.get("raw_path", scope["path"].encode())
        if scope["path"].encode() != raw or ".." in scope["path"]:
            return 404, b"not here"
        if scope["path"] == SEARCH:
            return None if scope["method"] == "POST" else (405, b"POST only")
        if not PATHS.fullmatch(scope["path"]):
            return 404, b"not here"
        return None if scope["method"] in ("GET", "HEAD") else (405, b"GET only")


def _bare(scope: Scope) -> Scope:
    """A request without what no route of the page asks for."""
    query = scope["query_string"] if scope["path"] == SEARCH else b""
    return {**scope, "query_string": query, "headers": [pair for pair in scope["headers"] if pair[0].lower() in HEARD]}


def _name(host: str) -> str:
    """A host without its port."""
    return host.rsplit(":", 1)[0] if re.fullmatch(r".*:\d{1,5}", host) else host


def _is_host(value: bytes) -> bool:
    """Whether a header (the first of its values) is the name or the number of a host, with or without a port."""
    name = _name(value.decode("latin-1").split(",")[0].strip())
    if len(name) > LONGEST_NAME:  # the pattern takes the square of it
        return False
    try:
        if re.fullmatch(r"\[[^%]*\]", name):
            ipaddress.IPv6Address(name[1:-1])
        elif not DOMAIN.fullmatch(name):
            ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True


class Budget:
    """So many bytes may be held at a time; whoever wants more waits until others have given theirs back."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._given_back = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes, at most all of them, for the block."""
        async with self._given_back:
            await self._given_back.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            async with self._given_back:
                self._free += size
                self._given_back.notify_all()
