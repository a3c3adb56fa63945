"""Fetching a published file: resumed where it broke off, retried, and kept only when its SHA-256 is right."""

import http.client
import logging
import os
import posixpath
import ssl
import time
from email.message import Message
from functools import partial
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, url2pathname, urlopen

import pooch

from stages.artifacts import RESUME, sha256
from stages.errors import InputError, OutsideError
from stages.progress import progress_bar

#: Fetched files stay here, so that another seed or protocol does not fetch them again.
ARCHIVES = RESUME / "archives"

#: Attempts in a row that bring nothing, the seconds before the second (doubling), and seconds without a byte.
ATTEMPTS = 4
BACK_OFF = 1.0
TIMEOUT = 30.0
#: Answers that are worth another try.
PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))
PIECE = 2**20


def fetch(url: str, digest: str, max_bytes: int) -> Path:
    """The file at `url` (http, https or file), whose SHA-256 is `digest`.

    A ``file:`` URL is used where it lies. Anything else is kept under :data:`ARCHIVES`; what has come of an unfinished
    download is continued, in this run and in the next.

    Raises:
        InputError: the content has another digest or is longer than `max_bytes`, or a ``file:`` URL leads nowhere.
        OutsideError: the server cannot be reached or does not give the file.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return _local(Path(url2pathname(parts.path)), digest)
    name = f"{digest[:16]}-{posixpath.basename(parts.path)}"
    pooch.get_logger().setLevel(logging.WARNING)
    try:
        downloader = partial(_download, part=ARCHIVES / f"{name}.part", max_bytes=max_bytes)
        return Path(pooch.retrieve(url, f"sha256:{digest}", name, ARCHIVES, downloader=downloader))
    except ValueError as error:  # pooch names both digests, and has deleted the download
        raise InputError(f"{url}: {' '.join(str(error).split())} Try again, or set data.mirror") from None


def _local(path: Path, digest: str) -> Path:
    if not path.is_file():
        raise InputError(f"{path}: no such file; put the archive there or correct data.mirror")
    found = sha256(path)
    if found != digest:
        raise InputError(f"{path}: SHA-256 is {found}, expected {digest}; get the official file again")
    return path


def _download(url: str, output_file: str, _: object, *, part: Path, max_bytes: int) -> None:
    """Fetch `url` into `part`, continuing what is there, then move it to `output_file`."""
    failures, best = 0, _size(part)
    while True:
        try:
            _continue(url, part, max_bytes)
            os.replace(part, output_file)
            return
        except HTTPError as error:
            with error:
                if error.code == 416:  # what is there is not the beginning of that file
                    part.unlink(missing_ok=True)
                elif error.code not in PASSING:
                    raise _unreachable(url, f"HTTP {error.code} {error.reason}", part) from None
            reason = f"HTTP {error.code} {error.reason}"
        except (URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        failures = 0 if _size(part) > best else failures + 1
        best = max(best, _size(part))
        if failures == ATTEMPTS:
            raise _unreachable(url, reason, part)
        time.sleep(BACK_OFF * 2 ** max(0, failures - 1))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unreachable(url: str, reason: str, part: Path) -> OutsideError:
    return OutsideError(
        f"{url}: cannot be fetched ({' '.join(reason.split())}); run it again to continue, set data.mirror to another "
        f"URL or to file:///directory-with-the-file, or save the file as {part.with_suffix('')}"
    )


def _continue(url: str, part: Path, max_bytes: int) -> None:
    """One attempt: append to `part` what it still lacks.

    Raises:
        InputError: it would become longer than `max_bytes`; nothing is kept.
        OSError, http.client.HTTPException: the connection failed or broke off; what has come is kept.
    """
    start = _size(part)
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range", "").endswith(f"/{start}"):
            return  # all of it was there already
        raise
    with response:
        if response.status != 206 or not _continues(response.headers, start):
            start = 0  # the server sends all of it
        if response.status == 206 and not start:
            part.unlink(missing_ok=True)
            raise http.client.HTTPException("the server sent another range than the one asked for")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with open(part, "ab" if start else "wb") as file, progress_bar(f"fetch {url} (MiB)", _mebi(total)) as bar:
            bar.advance(start // PIECE)
            while piece := response.read(PIECE):
                start += len(piece)
                if start > max_bytes:
                    part.unlink()
                    raise InputError(f"{url}: longer than the {max_bytes:,} bytes expected; set another data.mirror")
                file.write(piece)
                bar.advance()
    if total is not None and start < total:
        raise http.client.HTTPException(f"connection lost after {start:,} of {total:,} bytes")


def _continues(headers: Message, start: int) -> bool:
    return headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _mebi(n_bytes: int | None) -> int | None:
    return None if n_bytes is None else -(-n_bytes // PIECE)
