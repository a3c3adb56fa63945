"""Bringing one URL into a file: continued where it broke off, retried, and never put together from two versions."""

import json
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from time import sleep
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from stages.artifacts import write_json
from stages.errors import InputError
from stages.progress import progress_bar

#: Attempts in a row that bring nothing, the seconds before the second (doubling), and the most a server may ask for.
ATTEMPTS = 4
BACK_OFF = 1.0
MAX_WAIT = 60.0
#: Seconds without a byte.
TIMEOUT = 30.0
#: Answers that are worth another try.
PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))
PIECE = 2**18
MEBI = 2**20
USER_AGENT = "conceptbits (data set download)"


class Unavailable(Exception):
    """A place does not give the file. The message is the reason alone: the caller names the place."""


class _Broken(Exception):
    """An attempt failed in a way that another may not."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def download(url: str, part: Path, max_bytes: int, verifiable: bool) -> bool:
    """Bring all of `url` into `part`. What is there already is continued, in this run or after it was killed.

    A beginning is continued when the server vouches (``If-Range``) that it belongs to what it has now, or when the
    caller can tell a wrong whole from a right one. Proxies are those of the environment, see
    :func:`urllib.request.getproxies`.

    Args:
        url: http or https.
        part: the file; a small one beside it says where its beginning is from.
        max_bytes: more than this is never written.
        verifiable: whether the caller knows a digest.

    Returns:
        Whether it came at one go and its end is certain. Otherwise a wrong digest may be the fault of the beginning,
        or of the connection.

    Raises:
        Unavailable: `url` cannot be reached or does not give it. What came is kept.
        InputError: it is longer than `max_bytes`. Nothing is kept.
        OSError: the disk is full or read-only; names `part`.
    """
    failures, best = 0, _size(part)
    while True:
        try:
            return _attempt(url, part, max_bytes, verifiable)
        except _Broken as broken:
            failures = 0 if _size(part) > best else failures + 1
            best = max(best, _size(part))
            if failures == ATTEMPTS:
                raise Unavailable(str(broken)) from None
            sleep(BACK_OFF * 2 ** max(0, failures - 1) if broken.wait is None else broken.wait)


def discard(part: Path) -> None:
    """Remove a part and what is known of it."""
    part.unlink(missing_ok=True)
    _origin(part).unlink(missing_ok=True)


def _attempt(url: str, part: Path, max_bytes: int, verifiable: bool) -> bool:
    """One request, whose answer is appended to `part` or replaces it; returns as :func:`download`."""
    start, validator = _beginning(url, part, verifiable)
    headers = {"User-Agent": USER_AGENT}
    if start:
        headers["Range"] = f"bytes={start}-"
    if validator:
        headers["If-Range"] = validator
    try:
        response = _open(Request(url, headers=headers))
    except HTTPError as error:  # 416
        with error:
            if start and error.headers.get("Content-Range", "").endswith(f"/{start}"):
                return False  # all of it was there
        if not start:
            raise Unavailable(_of_status(error)) from None
        discard(part)
        raise _Broken(_of_status(error)) from None
    with response:
        length = response.length
        if response.status == 206 and start:
            sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            changed = validator and _validator(response.headers) not in (None, validator)
            if not sent or int(sent[1]) != start or changed:
                discard(part)
                raise _Broken("the server sent another range than the one asked for")
            total = None if sent[2] == "*" else int(sent[2])
        elif response.status == 200:  # from its first byte on, whatever was asked for
            start, total = 0, length
        else:
            raise Unavailable(f"HTTP {response.status} was not asked for")
        _append(response, url, part, start, total, max_bytes)
        return start == 0 and (length is not None or response.chunked)


def _append(response: HTTPResponse, url: str, part: Path, start: int, total: int | None, max_bytes: int) -> None:
    """Write the body of `response` into `part` from `start` on, or raise as :func:`download`."""
    size = start
    with _naming(part), open(part, "ab" if start else "wb") as file:
        if not start:  # before the first byte: a beginning without its origin may be continued with something else
            write_json(_origin(part), {"url": url, "validator": _validator(response.headers)})
        with progress_bar(f"fetch {url} (MiB)", None if total is None else -(-total // MEBI)) as bar:
            bar.advance(start // MEBI)
            for piece in _pieces(response):
                if max(size + len(piece), total or 0) > max_bytes:
                    discard(part)
                    raise InputError(
                        f"{url}: longer than the {max_bytes:,} bytes that the file may have, so nothing is kept; "
                        f"set dataset.mirrors to another place"
                    )
                file.write(piece)
                bar.advance((size + len(piece)) // MEBI - size // MEBI)
                size += len(piece)
    if total is not None and size < total:
        raise _Broken(f"connection lost after {size:,} of {total:,} bytes")


def _beginning(url: str, part: Path, verifiable: bool) -> tuple[int, str | None]:
    """How many bytes of `part` may be continued from `url`, and the validator that the server has to agree to."""
    try:
        origin = json.loads(_origin(part).read_text(encoding="utf-8"))
        validator = origin["validator"] if origin["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        validator = None
    size = _size(part) if validator or verifiable else 0
    return size, validator if size else None


def _origin(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _validator(headers: Message) -> str | None:
    """What tells this version from others in ``If-Range``, where weak tags are not allowed (RFC 9110, 13.1.5)."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified")


class _WebRedirects(HTTPRedirectHandler):
    """Follows to http and https alone, and not for ever."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise HTTPError(newurl, code, f"{msg} - Redirection to url '{newurl}' is not allowed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: Request) -> HTTPResponse:
    """Send a request.

    Raises:
        HTTPError: the answer is 416.
        Unavailable, _Broken: any other failure.
    """
    host = request.host
    try:
        return build_opener(_WebRedirects).open(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416:
            raise
        with error:
            if error.code in PASSING:
                raise _Broken(_of_status(error), _retry_after(error.headers)) from None
            raise Unavailable(_of_status(error)) from None
    except (OSError, HTTPException, ValueError) as error:
        reason = _in_words(error) + ("" if request.host == host else f", through the proxy {request.host}")
        lasting = isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)
        if lasting or isinstance(error, InvalidURL | ValueError):
            raise Unavailable(reason) from None
        raise _Broken(reason) from None


def _pieces(response: HTTPResponse) -> Iterator[bytes]:
    """The body as it comes in: of a whole piece that is waited for, all would be lost with the connection."""
    left = response.length
    while left != 0:
        try:
            piece = response.read1(PIECE if left is None else min(PIECE, left))
        except (OSError, HTTPException) as error:
            raise _Broken(f"connection lost: {_in_words(error)}") from None
        if not piece:
            return
        if left is not None:
            left -= len(piece)
        yield piece


def _retry_after(headers: Message) -> float | None:
    """Seconds that the server asks to wait, :data:`MAX_WAIT` at most."""
    asked = headers.get("Retry-After", "").strip()
    try:
        seconds = float(asked) if asked.isdecimal() else (_date(asked) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), MAX_WAIT)


def _date(text: str) -> datetime:
    date = parsedate_to_datetime(text)
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _of_status(error: HTTPError) -> str:
    return _printable(f"HTTP {error.code} {error.reason}")


def _in_words(error: Exception) -> str:
    reason = error.reason if isinstance(error, URLError) else error
    return _printable(getattr(reason, "strerror", None) or str(reason) or type(reason).__name__)


def _printable(text: str) -> str:
    """One line of at most 200 characters, whatever a server has put into it."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())[:200]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put `path` into an error of the disk that names nothing."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
