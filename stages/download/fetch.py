"""Fetching a published file: from the cache or the first place that has it, and kept only when its digest is right."""

import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import url2pathname

from stages.download import cache
from stages.download.transfer import Unavailable, discard, download
from stages.errors import InputError, OutsideError
from stages.offline import offline

_NAMES = {"sha256": "SHA-256", "md5": "MD5"}


@dataclass(frozen=True)
class Published:
    """A file that somebody publishes.

    Attributes:
        urls: where it is (http, https or file), the official place first.
        digest: ``sha256:...`` or ``md5:...`` as published; None where nobody publishes one.
        max_bytes: more than this is not the file.
    """

    urls: tuple[str, ...]
    digest: str | None
    max_bytes: int

    @property
    def name(self) -> str:
        return posixpath.basename(urlsplit(self.urls[0]).path)


class Fetched(NamedTuple):
    """A file on this machine and its SHA-256."""

    path: Path
    sha256: str


class _Mismatch(InputError):
    """A file is not the published one."""

    def __init__(self, fact: str, advice: str) -> None:
        super().__init__(f"{fact}; {advice}")
        self.fact = fact


def fetch(file: Published, mirrors: Sequence[str] | None = None) -> Fetched:
    """The file, from the cache or else from the first of `mirrors` and its own `urls` that gives it.

    A ``file:`` URL is used where it lies. Anything else is kept in the shared cache (:mod:`stages.download.cache`);
    what has come of an unfinished download is continued, in this run and in the next, and other processes wait for it.
    Every call reads the whole file once to verify it. A file without a published SHA-256 is held to the one that it had
    when this cache first saw it.

    Args:
        file: what to fetch.
        mirrors: other places (http, https, file), tried first: each the URL of the file, under its official name, or of
            the directory that has it.

    Raises:
        InputError: the first place that gives something gives something else (another digest, longer than
            `max_bytes`), or the file would have to be fetched in offline mode.
        OutsideError: no place gives it; names each with its reason.
    """
    cached = cache.path_of(file.urls[0])
    noted: list[str] = []
    if cached.exists():
        try:
            return _verified(file, cached, str(cached))
        except _Mismatch as mismatch:
            noted.append(mismatch.fact)
    forbidden = offline()
    for place in _places(file, mirrors or ()):
        try:
            if urlsplit(place).scheme == "file":
                return _local(file, place)
            if not forbidden:
                return _downloaded(file, place, cached)
        except Unavailable as reason:
            noted.append(f"{place} ({reason})")
    if forbidden:
        tried = f" ({'; '.join(noted)})" if noted else ""
        raise InputError(
            f"{file.name}: not in the cache{tried}, and {forbidden} is set, so it is not fetched; get it elsewhere "
            f"from {' or '.join(file.urls)} and save it as {cached}"
        )
    raise OutsideError(
        f"{file.name}: cannot be fetched: {'; '.join(noted)}. Run it again to continue, set dataset.mirrors to another "
        f"URL or to file:///directory-with-the-file, or save the file as {cached}"
    )


def _places(file: Published, mirrors: Sequence[str]) -> list[str]:
    """URLs of the file itself, in the order in which they are tried, each once."""
    return list(dict.fromkeys([*(_at(mirror, file.name) for mirror in mirrors), *file.urls]))


def _at(mirror: str, name: str) -> str:
    """The URL of the file called `name` at a mirror, which is that URL already or the one of its directory."""
    parts = urlsplit(mirror)
    if unquote(name) in (posixpath.basename(unquote(parts.path)), re.split(r"[/=&?]", unquote(mirror))[-1]):
        return mirror
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def _local(file: Published, url: str) -> Fetched:
    path = Path(url2pathname(urlsplit(url).path))
    if not path.is_file():
        raise Unavailable("no such file")
    return _verified(file, path, str(path))


def _downloaded(file: Published, url: str, cached: Path) -> Fetched:
    """Fetch `url` into the cache, where nothing else appears but what has been verified."""
    with cache.locked(cached):
        if cached.exists():  # damaged; or another process has fetched it in the meantime
            try:
                return _verified(file, cached, str(cached))
            except _Mismatch:
                cached.unlink()
        part = cached.with_name(f"{cached.name}.part")
        anew = False
        while True:
            verifiable = bool(file.digest or cache.recorded(file.urls[0]))
            at_one_go = download(url, part, file.max_bytes, verifiable)
            try:
                sha256 = _verified(file, part, url).sha256
            except _Mismatch as mismatch:
                is_page = _is_page(part, file.name)
                discard(part)
                if is_page:  # how dead links and log-ins answer: the place has not the file, which is not another file
                    raise Unavailable(f"a web page came instead; {mismatch.fact.removeprefix(f'{url}: ')}") from None
                if at_one_go or anew:
                    raise
                anew = True  # an old beginning or a cut end would not be the fault of the file that is there
                continue
            os.replace(part, cached)
            discard(part)
            return Fetched(cached, sha256)


def _verified(file: Published, path: Path, where: str) -> Fetched:
    """`path`, when it is the file. The SHA-256 of the first one without a published SHA-256 is recorded.

    Raises:
        _Mismatch: it is not; the message calls it `where`.
    """
    size, official = path.stat().st_size, file.urls[0]
    if size > file.max_bytes:
        raise _Mismatch(f"{where}: {size:,} bytes, more than the {file.max_bytes:,} that the file may have", _GET_AGAIN)
    algorithm, _, published = (file.digest or "sha256:").partition(":")
    found = cache.digests(path, {"sha256", algorithm})
    if published and found[algorithm] != published.lower():
        raise _Mismatch(f"{where}: {_NAMES[algorithm]} is {found[algorithm]}, expected {published.lower()}", _GET_AGAIN)
    if not (published and algorithm == "sha256"):
        if not published and cache.recorded(official) is None and (not size or _is_page(path, file.name)):
            raise _Mismatch(f"{where}: {'a web page' if size else 'empty'}, not the file", _GET_AGAIN)
        recorded = cache.record(official, found["sha256"])
        if found["sha256"] != recorded:
            raise _Mismatch(
                f"{where}: SHA-256 is {found['sha256']}, expected {recorded}",
                f"{cache.record_path()} has the latter, from the first download of {official}; if the file has a new "
                f"version that you want, delete that entry there and repeat; otherwise set another dataset.mirrors",
            )
    return Fetched(path, found["sha256"])


_GET_AGAIN = "it is damaged or has been changed; get it from another place (dataset.mirrors)"


def _is_page(path: Path, name: str) -> bool:
    """Whether it is HTML, under a name that does not promise HTML."""
    with open(path, "rb") as file:
        start = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html")) and not name.lower().endswith((".html", ".htm"))
