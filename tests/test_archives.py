"""Archives that nobody vouches for: each fault is one error that names archive and member."""

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cifar_archive import write_tar

from stages.download import archives
from stages.download.archives import member_names, open_members, read_members
from stages.errors import InputError

NOISE = np.random.default_rng(0).bytes(50_000)
FILES = {"set/a.png": NOISE, "set/deep/b.png": b"b", "c.png": b""}


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tar_with(path: Path, change: Callable[[tarfile.TarInfo], None], content: bytes = b"") -> Path:
    """A tar with an innocent member and one whose header is changed."""
    with tarfile.open(path, "w:gz") as tar:
        good = tarfile.TarInfo("good.png")
        tar.addfile(good)
        info = tarfile.TarInfo("evil.png")
        info.size = len(content)
        change(info)
        tar.addfile(info, io.BytesIO(content))
    return path


def damaged_archive(path: Path, mode: str) -> Path:
    """:data:`FILES` as an archive whose middle byte is another one."""
    write_zip(path, FILES) if mode == "zip" else write_tar(path, FILES, mode)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    return path


def refused(path: Path, match: str) -> None:
    """Listing and reading (the innocent member only) both fail with one line that names the archive."""
    for use in (member_names, lambda p: list(read_members(p, {"good.png"}))):
        with pytest.raises(InputError, match=match) as caught:
            use(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_reads_members_in_order(tmp_path, mode):
    path = tmp_path / "archive"
    write_zip(path, FILES) if mode == "zip" else write_tar(path, FILES, mode)
    assert member_names(path) == list(FILES)
    assert dict(read_members(path, FILES)) == FILES
    assert list(read_members(path, {"set/deep/b.png"})) == [("set/deep/b.png", b"b")]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_directories_and_long_names_are_fine(tmp_path, tar_format):
    name = f"{'d' * 90}/{'é' * 60}.png" if tar_format != tarfile.USTAR_FORMAT else "d/é.png"
    with tarfile.open(tmp_path / "a.tar", "w", format=tar_format) as tar:
        directory = tarfile.TarInfo("./set/")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        tar.addfile(directory)
        info = tarfile.TarInfo(f"./{name}")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert dict(read_members(tmp_path / "a.tar", {name})) == {name: b"abc"}


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd.png", "absolute path"), ("\\x.png", "absolute path"), ("C:\\x.png", "absolute path"),
        ("C:x.png", "absolute path"), ("../x.png", r"'\.\.'"), ("a/../../x.png", r"'\.\.'"),
        ("a\\..\\..\\x.png", r"'\.\.'"), ("good.png", "twice"), ("./good.png", "twice"),
    ],
)  # fmt: skip
def test_hostile_name(tmp_path, kind, name, reason):
    path = tmp_path / "archive"
    if kind == "tar":
        tar_with(path, lambda info: setattr(info, "name", name))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("good.png", b"")
            if name == "good.png":
                with pytest.warns(UserWarning, match="Duplicate"):
                    archive.writestr(name, b"")
            else:
                archive.writestr(name, b"")
    refused(path, reason)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_tar_with_other_than_plain_files(tmp_path, kind):
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.devmajor, info.devminor = kind, "good.png", 1, 3

    refused(tar_with(tmp_path / "a.tgz", change), "'evil.png' is neither a plain file nor a directory")


def test_sparse_tar_member(tmp_path):
    def change(info: tarfile.TarInfo) -> None:
        info.pax_headers = {
            "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "evil.png",
            "GNU.sparse.size": "60000000", "GNU.sparse.map": "0,1", "GNU.sparse.numblocks": "1",
        }  # fmt: skip

    refused(tar_with(tmp_path / "a.tgz", change, b"x"), "'evil.png' is neither")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO])
def test_zip_with_other_than_plain_files(tmp_path, mode):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.png", b"")
        info = zipfile.ZipInfo("evil.png")
        info.external_attr = (mode | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    refused(tmp_path / "a.zip", "'evil.png' is neither a plain file nor a directory")


def test_zip_with_a_member_without_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.png", b"")
        with archive.open(zipfile.ZipInfo(""), "w") as member:
            member.write(b"x")
    refused(tmp_path / "a.zip", "its member '' has no name")


def test_zip_whose_members_lie_before_its_beginning(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"good.png": b"x"})
    content = bytearray(path.read_bytes())
    content[-6:-2] = (int.from_bytes(content[-6:-2], "little") + 100).to_bytes(4, "little")  # of its list of members
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.zip.*truncated or corrupt archive"):
        list(read_members(path, {"good.png"}))


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_member_of_absurd_size(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    members = {"good.png": b"", "big.png": bytes(1001)}
    path = (write_zip if kind == "zip" else write_tar)(tmp_path / "a", members)
    refused(path, "'big.png' is of 1,001 bytes, more than 1,000")


def test_tar_header_that_lies_about_the_size(tmp_path):
    info = tarfile.TarInfo("evil.png")
    info.size = 2**40
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    refused(tmp_path / "a.tar", "'evil.png' is of 1,099,511,627,776 bytes")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_bomb(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archives, "MIN_TOTAL", 2**20)
    members = {f"{index}.png": bytes(2**20) for index in range(30)}
    path = (write_zip if kind == "zip" else write_tar)(tmp_path / "a", members)
    assert path.stat().st_size < 2**20 * 30 / archives.MAX_RATIO
    refused(path, r"member '\d+.png' brings the content to more than .* absurd")


def test_bomb_in_a_tar_header(tmp_path):
    """A header extension of 200 MB, which tarfile would read into memory, in an archive of 200 kB."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 200_000_000
    with gzip.open(tmp_path / "a.tgz", "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(200):
            file.write(bytes(1_000_000))
    refused(tmp_path / "a.tgz", "a header is of more than 1,048,576 bytes")


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    refused(write_tar(tmp_path / "a", FILES), "'c.png' is one too many")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.8])
def test_truncated(tmp_path, mode, part):
    path = tmp_path / "archive"
    write_zip(path, FILES) if mode == "zip" else write_tar(path, FILES, mode)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(InputError, match=r"archive.*(truncated or corrupt|refused)"):
        list(read_members(path, FILES))


def test_tar_cut_between_two_members(tmp_path):
    path = write_tar(tmp_path / "a.tar", FILES, "w")
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"set/deep/b.png")])
    refused(path, "no end mark")


def test_tar_with_garbage_between_two_members(tmp_path):
    path = write_tar(tmp_path / "a.tar", FILES, "w")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"set/deep/b.png", b"set/deep/X.png"))  # the checksum of that header is wrong now
    refused(path, "no end mark")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "zip"])
def test_flipped_bits(tmp_path, mode):
    path = damaged_archive(tmp_path / "archive", mode)
    with pytest.raises(InputError, match=r"archive.*(truncated or corrupt|refused)"):
        list(read_members(path, FILES))


def test_encrypted_zip(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"good.png": b"x"})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a.zip, member 'good.png'.*encrypted"):
        list(read_members(path, {"good.png"}))


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_no_archive(tmp_path, compress):
    (tmp_path / "a").write_bytes(compress(NOISE))
    refused(tmp_path / "a", "truncated or corrupt")


# ---- members that are read as streams


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_large_member_in_pieces(tmp_path, monkeypatch, mode):
    """A limit of its own, and no more in memory than is asked for."""
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    path = tmp_path / "archive"
    write_zip(path, FILES) if mode == "zip" else write_tar(path, FILES, mode)
    names = []
    for name, stream in open_members(path, {"set/a.png", "c.png"}, len(NOISE)):
        names.append(name)
        assert b"".join(iter(lambda stream=stream: stream.read(999), b"")) == FILES[name]
        assert stream.read() == b""
    assert names == ["set/a.png", "c.png"]
    with pytest.raises(InputError, match=r"'set/a\.png' is of 50,000 bytes, more than 49,999"):
        list(open_members(path, {"c.png"}, len(NOISE) - 1))
    with pytest.raises(InputError, match=r"'set/a\.png' is of 50,000 bytes, more than 1,000"):
        list(read_members(path, {"c.png"}))


@pytest.mark.parametrize("mode", ["w:gz", "zip"])
def test_stream_has_what_pickle_asks_for(tmp_path, mode):
    path = tmp_path / "archive"
    write_zip(path, {"a": b"one\ntwo"}) if mode == "zip" else write_tar(path, {"a": b"one\ntwo"}, mode)
    ((_, stream),) = [(name, (s.peek(2)[:2], s.readline(), s.read())) for name, s in open_members(path, {"a"}, 100)]
    assert stream == (b"on", b"one\n", b"two")


@pytest.mark.parametrize("mode", ["w", "w:gz", "zip"])
def test_stream_that_is_not_read_to_its_end(tmp_path, mode):
    path = tmp_path / "archive"
    write_zip(path, FILES) if mode == "zip" else write_tar(path, FILES, mode)
    assert [stream.read(1) for _, stream in open_members(path, FILES, len(NOISE))] == [NOISE[:1], b"b", b""]


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "zip"])
def test_damage_within_a_stream(tmp_path, mode):
    path = damaged_archive(tmp_path / "archive", mode)
    with pytest.raises(InputError, match=r"archive.*truncated or corrupt"):
        for _, stream in open_members(path, {"set/a.png"}, len(NOISE)):
            while stream.read(1000):
                pass


def test_what_follows_a_stream_is_checked_as_well(tmp_path):
    path = tar_with(tmp_path / "a.tgz", lambda info: setattr(info, "name", "../evil.png"))
    seen = []
    with pytest.raises(InputError, match=r"'\.\.'"):
        for name, _ in open_members(path, {"good.png"}, 100):
            seen.append(name)
    assert seen == ["good.png"]
