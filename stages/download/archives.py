"""Reading tar and zip archives that nobody vouches for. Nothing is ever extracted to disk.

Every header is checked, also those of members that nobody asked for: only plain files and directories, with relative
names that occur once, of sane sizes; and the archive has to be complete.
"""

import bz2
import errno
import gzip
import lzma
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

from stages.download.remote import RemoteFile, opened, size_of
from stages.download.source import MAX_BYTES
from stages.errors import InputError

#: What the members may take together: images hardly shrink, so anything beyond this multiple of the archive is a bomb.
MAX_RATIO = 100
#: A small archive may unpack to this much whatever the ratio.
MIN_TOTAL = 64 * 2**20
MAX_MEMBERS = 5_000_000
#: What one tar header with its extensions may take.
MAX_HEADER = 2**20

_DECOMPRESSORS: dict[bytes, Callable[[BinaryIO], BinaryIO]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open,
}  # fmt: skip


def member_names(path: Path) -> list[str]:
    """Names of all files in an archive, in its order.

    Raises:
        InputError: the archive is damaged or hostile; names it and the member.
    """
    return [name for name, _ in _entries(path, MAX_BYTES)]


def read_members(path: Path, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of those files in an archive that are `wanted`, in its order, one at a time.

    Raises:
        InputError: the archive is damaged or hostile; names it and the member.
    """
    for name, stream in open_members(path, wanted, MAX_BYTES):
        yield name, stream.read()


def open_members(path: Path | RemoteFile, wanted: Container[str], max_bytes: int) -> Iterator[tuple[str, "Member"]]:
    """(name, content as a stream) of those files in an archive that are `wanted`, in its order.

    For files that are too large for :func:`read_members`. A stream can be read until the next step only.

    Args:
        path: the archive.
        wanted: names of files.
        max_bytes: no file in the archive may be larger, also those that are not wanted.

    Raises:
        InputError: the archive is damaged or hostile; names it and the member. Reading a stream raises it as well.
    """
    for name, begin in _entries(path, max_bytes):
        if name in wanted:
            with _named_errors(path, name):
                stream = begin()
            with stream:
                yield name, Member(stream, path, name)


class Member:
    """The content of one file in an archive, to be read from front to back."""

    def __init__(self, stream: BufferedReader, path: Path, name: str) -> None:
        self._stream, self._path, self._name = stream, path, name

    def read(self, size: int = -1) -> bytes:
        with _named_errors(self._path, self._name):
            return self._stream.read(size)

    def readline(self) -> bytes:
        with _named_errors(self._path, self._name):
            return self._stream.readline()

    def peek(self, size: int) -> bytes:
        with _named_errors(self._path, self._name):
            return self._stream.peek(size)


def _entries(path: Path | RemoteFile, max_bytes: int) -> Iterator[tuple[str, Callable[[], BufferedReader]]]:
    """(name, how to open it) of every file; it can be read until the next step only."""
    with opened(path) as file:
        magic = file.read(6)
        file.seek(0)
        entries = _zip_entries if magic.startswith(b"PK") else _tar_entries
        yield from entries(path, file, magic, _Checks(path, max_bytes))


def _tar_entries(
    path: Path, file: BinaryIO, magic: bytes, check: "_Checks"
) -> Iterator[tuple[str, Callable[[], BufferedReader]]]:
    unpack = next((open_ for start, open_ in _DECOMPRESSORS.items() if magic.startswith(start)), None)
    guard = _Guard(unpack(file) if unpack else file, path, check.max_total)
    with _named_errors(path):
        tar = tarfile.open(fileobj=guard, mode="r|")  # noqa: SIM115 - closing it would read on
    while True:
        with _named_errors(path):
            member = tar.next()
        if member is None:
            break
        check.member(member.name, member.size, plain=member.isfile() and not member.issparse(), folder=member.isdir())
        guard.allow(member.size)
        tar.members.clear()  # tarfile would remember every header
        if member.isfile():
            yield posixpath.normpath(member.name), lambda member=member: tar.extractfile(member)
    if guard.block(tar.offset).strip(b"\0") or not guard.block(tar.offset):
        # tarfile takes both a cut between two members and garbage there for the end.
        raise InputError(f"{path}: truncated or corrupt archive (it has no end mark); fetch it again")
    with _named_errors(path):
        while guard.read(MAX_HEADER):  # only the end of the compressed stream has its checksum
            pass


def _zip_entries(
    path: Path, file: BinaryIO, _: bytes, check: "_Checks"
) -> Iterator[tuple[str, Callable[[], BufferedReader]]]:
    with _named_errors(path):
        archive = zipfile.ZipFile(file)
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was made without Unix modes
        is_folder = info.filename.endswith("/")  # is_dir() of Python 3.11 takes no empty name
        check.member(
            info.filename, info.file_size,
            plain=kind in (0, stat.S_IFREG) and not is_folder, folder=is_folder and kind in (0, stat.S_IFDIR),
        )  # fmt: skip
        if not is_folder:
            yield posixpath.normpath(info.filename), lambda info=info: archive.open(info)


class _Checks:
    """What every header of one archive has to pass."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path, self.max_bytes = path, max_bytes
        self.max_total = max(MIN_TOTAL, MAX_RATIO * size_of(path))
        self._names: set[str] = set()
        self._total = 0

    def member(self, name: str, size: int, plain: bool, folder: bool) -> None:
        """Refuse a member that has no place in a data set."""
        normal = posixpath.normpath(name)
        parts = name.replace("\\", "/").split("/")
        self._total += max(size, 0)
        if name.startswith(("/", "\\")) or (":" in name and PureWindowsPath(name).drive):
            reason = "has an absolute path"
        elif ".." in parts:
            reason = "has '..' in its path"
        elif plain and normal == ".":
            reason = "has no name"
        elif not (plain or folder):
            reason = "is neither a plain file nor a directory"
        elif plain and normal in self._names:
            reason = "occurs twice"
        elif not 0 <= size <= self.max_bytes:
            reason = f"is of {size:,} bytes, more than {self.max_bytes:,}"
        elif self._total > self.max_total:
            reason = f"brings the content to more than {self.max_total:,} bytes, absurd for an archive of this size"
        elif len(self._names) == MAX_MEMBERS:
            reason = f"is one too many, more than {MAX_MEMBERS:,}"
        else:
            self._names.add(normal)
            return
        raise InputError(f"{self.path}: refused, its member {name[:120]!r} {reason}; get it from a source you trust")


class _Guard:
    """The uncompressed bytes of a tar archive, at most as many as its headers account for."""

    def __init__(self, stream: BinaryIO, path: Path, max_total: int) -> None:
        self._stream, self._path, self._max_total = stream, path, max_total
        self._position, self._last = 0, b""
        self._limit = MAX_HEADER

    def allow(self, size: int) -> None:
        """Let the content of a member and the next header through."""
        self._limit = self._position + size + MAX_HEADER

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if data:
            self._position, self._last = self._position + len(data), data
        if self._position > self._limit:
            raise InputError(f"{self._path}: refused, a header is of more than {MAX_HEADER:,} bytes")
        return data

    def block(self, offset: int) -> bytes:
        """The 512 bytes at `offset` of what was read last; empty when the stream ended before."""
        start = offset - (self._position - len(self._last))
        return self._last[start : start + 512] if start >= 0 else b""


@contextmanager
def _named_errors(path: Path, member: str = "") -> Iterator[None]:
    """Turn what the decoders raise on damaged archives into an InputError that names archive and member."""
    try:
        yield
    except (
        OSError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error,
        ValueError, NotImplementedError, RuntimeError, OverflowError,
    ) as error:  # fmt: skip
        # Of the disk, not of a decoder; but a zip archive may name places before its beginning.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        what = f"{path}, member {member!r}" if member else str(path)
        raise InputError(f"{what}: truncated or corrupt archive ({' '.join(str(error).split())})") from None
