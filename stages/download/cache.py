"""The cache of published files that all projects on a machine share, and the digests of first downloads in it."""

import hashlib
import json
import os
import posixpath
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pooch
from filelock import FileLock, Timeout

from stages.artifacts import write_json
from stages.errors import InputError
from stages.progress import progress_bar

#: The environment variable that names the directory.
DIRECTORY = "CONCEPTBITS_CACHE"
MEBI = 2**20


def directory() -> Path:
    """The cache directory; the operating system's usual place where the environment names none."""
    return Path(os.environ.get(DIRECTORY) or pooch.os_cache("conceptbits")).expanduser().absolute()


def path_of(url: str) -> Path:
    """Where the file that is officially at `url` is kept. No two URLs share a path."""
    return directory() / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{posixpath.basename(urlsplit(url).path)}"


def record_path() -> Path:
    """Where the digests of first downloads are: JSON, official URL to ``sha256:...``."""
    return directory() / "digests.json"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be alone with `path` among all processes that ask; waits for its turn. A process that dies lets go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with progress_bar(f"wait for another process with {path.name}", None):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def recorded(url: str) -> str | None:
    """The SHA-256 that the first download of the file officially at `url` had, if there was one.

    Raises:
        InputError: the record cannot be read.
    """
    return _entries().get(url)


def record(url: str, sha256: str) -> str:
    """Record the SHA-256 of a first download; an earlier one stands.

    Returns:
        The SHA-256 that stands.

    Raises:
        InputError: the record cannot be read.
    """
    if (standing := recorded(url)) is None:
        with locked(record_path()):
            entries = _entries()
            standing = entries.setdefault(url, sha256)
            write_json(record_path(), {key: f"sha256:{value}" for key, value in sorted(entries.items())})
    return standing


def _entries() -> dict[str, str]:
    try:
        content = json.loads(record_path().read_text(encoding="utf-8"))
        return {url: digest.removeprefix("sha256:").lower() for url, digest in content.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{record_path()}: not a JSON object of URLs and digests ({error}); mend it, or delete it to record anew"
        ) from None


def digests(path: Path, algorithms: Collection[str]) -> dict[str, str]:
    """Hexadecimal digests of a file by algorithm, in one pass."""
    hashes = {algorithm: hashlib.new(algorithm, usedforsecurity=False) for algorithm in algorithms}
    n_pieces = -(-path.stat().st_size // MEBI)
    with open(path, "rb") as file, progress_bar(f"verify {path.name} (MiB)", n_pieces) as bar:
        while piece := file.read(MEBI):
            for state in hashes.values():
                state.update(piece)
            bar.advance()
    return {algorithm: state.hexdigest() for algorithm, state in hashes.items()}
