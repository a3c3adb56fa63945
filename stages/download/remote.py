"""Shards that lie in an object store (``s3://bucket/train/*.parquet``), read where they are: nothing is kept here.

What a shard may hold is bounded as in a file of this machine, by the readers of its kind. Access, region and endpoint
are the store's own settings, as its other clients have them (``AWS_PROFILE``, ``AWS_ENDPOINT_URL``, ...).
"""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from stages.download.files import expand_braces, is_hidden
from stages.errors import InputError, OutsideError
from stages.offline import offline

#: Stores, and the extra or package that reads each.
STORES = {"s3": "conceptbits[s3]", "gs": "gcsfs", "az": "adlfs"}
#: Bytes that are fetched at once while a shard is read from front to back.
BLOCK = 8 * 2**20
#: More files than this are not what anybody means.
MAX_FILES = 1_000_000


@dataclass(frozen=True)
class RemoteFile:
    """A file in a store; it can go to another process.

    Attributes:
        url: where it is; name: relative to where all of them are.
        size: in bytes; version: what the store calls this state of it.
    """

    url: str
    name: str
    size: int
    version: str

    def __str__(self) -> str:
        return self.url


def is_remote(path: str) -> bool:
    """Whether ``dataset.path`` is a place in a store."""
    return re.match(rf"({'|'.join(STORES)})://", path) is not None


def find_remote(path: str, suffixes: tuple[str, ...], what: str) -> list[RemoteFile]:
    """As :func:`stages.download.files.find_files`, of a file, a folder or a pattern in a store.

    Raises:
        InputError: nothing of the kind is there, or what reads the store is not installed.
        OutsideError: the store does not answer, or refuses access.
    """
    if variable := offline():
        raise InputError(f"dataset.path: {path} is not on this machine, and {variable} is set; unset it")
    found: dict[str, dict[str, Any]] = {}
    scheme = path.split("://", 1)[0]
    with _named(path):
        store = _store(path)
        for pattern in expand_braces(path):
            listed = _listed(store, store._strip_protocol(pattern), suffixes)
            if not listed and pattern != path:
                raise InputError(f"dataset.path: {path}: no {pattern} there; complete the files or correct the braces")
            found |= listed
    chosen = sorted(found)
    if not chosen:
        raise InputError(f"dataset.path: {path}: no {what} there")
    if len(chosen) > MAX_FILES:
        raise InputError(f"dataset.path: {path}: means {len(chosen):,} files, more than {MAX_FILES:,}; name fewer")
    folders = [name.split("/")[:-1] for name in chosen]
    common = 0
    while all(len(parts) > common and parts[common] == folders[0][common] for parts in folders):
        common += 1
    return [
        RemoteFile(f"{scheme}://{name}", "/".join(name.split("/")[common:]), int(found[name]["size"]),
                   str(found[name].get("ETag") or found[name].get("etag") or found[name].get("mtime") or ""))
        for name in chosen
    ]  # fmt: skip


def _listed(store: Any, pattern: str, suffixes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What the store says of the file `pattern`, of all that match it, or of those in a folder with these endings."""
    matches = any(sign in pattern for sign in "*?[")
    listed = store.glob(pattern, detail=True) if matches else store.find(pattern, detail=True)
    found = {name: entry for name, entry in listed.items() if entry["type"] == "file" and not name.endswith("/")}
    if matches or pattern in found:
        return found
    depth = len(pattern.split("/"))
    return {
        name: entry for name, entry in found.items()
        if name.lower().endswith(suffixes) and not any(map(is_hidden, name.split("/")[depth:]))
    }  # fmt: skip


def remote_states(files: Iterable[RemoteFile]) -> str:
    """A digest of names, sizes and versions: the identity of a collection that is not read to know it."""
    return hashlib.sha256(repr([(file.url, file.size, file.version) for file in files]).encode()).hexdigest()


def size_of(file: Path | RemoteFile) -> int:
    """Its bytes."""
    return file.size if isinstance(file, RemoteFile) else file.stat().st_size


def opened(file: Path | RemoteFile) -> BinaryIO:
    """The file, open to be read.

    Raises:
        OutsideError: the store does not give it; reading raises it, too.
    """
    if not isinstance(file, RemoteFile):
        return open(file, "rb")
    with _named(file.url):
        return io.BufferedReader(_Reader(file), 2**16)


class _Reader(io.RawIOBase):
    """A file of a store, whose errors are ours."""

    def __init__(self, file: RemoteFile) -> None:
        self._url = file.url
        self._file = _store(file.url).open(file.url, "rb", block_size=BLOCK, cache_type="readahead")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _named(self._url):
            return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _store(url: str) -> Any:
    import fsspec

    return fsspec.core.url_to_fs(url)[0]


@contextmanager
def _named(url: str) -> Iterator[None]:
    """One line for whatever the clients of the stores raise, which is nearly anything."""
    scheme = url.split("://", 1)[0]
    try:
        yield
    except (InputError, OutsideError):
        raise
    except ImportError:
        raise InputError(f"dataset.path: {url}: cannot be read; install `pip install '{STORES[scheme]}'`") from None
    except FileNotFoundError:
        raise InputError(f"dataset.path: {url}: not found; correct the path") from None
    except PermissionError as error:
        raise OutsideError(f"{url}: access refused ({_one_line(error)}); see your credentials") from None
    except Exception as error:
        raise OutsideError(f"{url}: cannot be read ({_one_line(error)}); see that the endpoint is right") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
