"""``python -m stages verify``: DVC's digests, what is damaged or missing, and locks that tell nothing."""

from pathlib import Path

import pytest
import yaml
from dvc.fs import localfs
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB

from stages.errors import InputError
from stages.verify import LOCK, digest, verify

pytestmark = pytest.mark.usefixtures("workplace")


def write(files: dict[str, bytes]) -> None:
    for name, data in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(data)


def note(**paths: list[str]) -> None:
    """Write a lock file with the outputs of each stage as they are."""
    stages = {stage: {"outs": [{"path": path, "md5": digest(Path(path))} for path in made]}
              for stage, made in paths.items()}  # fmt: skip
    LOCK.write_text(yaml.safe_dump({"schema": "2.0", "stages": {**stages, "none": {"cmd": "true"}}}))


@pytest.fixture
def noted():
    write({"data/codes.h5": b"abc", "models/clip/config.json": b"{}", "models/clip/sub/weights": b"\0\r\n"})
    note(encode=["data/codes.h5"], weights=["models/clip"])


def test_digests_are_those_of_dvc(tmp_path):
    write({"a/b": b"x\r\ny", "a/sub/c": b"", "a/sub.d": b"z", "a/Ä": b"1"})
    store = HashFileDB(localfs, str(tmp_path / "store"))
    for path in (Path("a/b"), Path("a")):
        _, _, built = build(store, str(path.absolute()), localfs, "md5")
        assert digest(path) == built.hash_info.value


@pytest.mark.parametrize(("paths", "count"), [
    ([], 2), (["data"], 1), (["models/clip/config.json"], 1), (["data/codes.h5", "data"], 1), (["."], 2),
])  # fmt: skip
def test_as_noted(noted, paths, count):
    assert verify([Path(path) for path in paths]) == count
    assert verify([Path(path).absolute() for path in paths]) == count


@pytest.mark.parametrize("content", [b"", b"abd", b"abcd"])
def test_other_content(noted, content):
    Path("data/codes.h5").write_bytes(content)
    with pytest.raises(InputError, match=r"^data/codes.h5: its content is not what dvc.lock .* `dvc repro encode`$"):
        verify([])
    assert verify([Path("models")]) == 1


def test_file_more_and_file_less_in_a_directory(noted):
    Path("models/clip/more").touch()
    with pytest.raises(InputError, match=r"^models/clip: its content is not .* `dvc repro weights`$"):
        verify([])
    Path("models/clip/more").unlink()
    verify([])
    Path("models/clip/config.json").unlink()
    with pytest.raises(InputError, match="models/clip"):
        verify([])


def test_missing(noted):
    Path("data/codes.h5").unlink()
    with pytest.raises(InputError, match=r"^data/codes.h5: not found; run `dvc pull` or `dvc repro encode`$"):
        verify([])


def test_nothing_is_known_of_it(noted):
    with pytest.raises(InputError, match=r"^data/other: dvc.lock notes no such artifact; there are data/codes.h5, mo"):
        verify([Path("data/other")])


@pytest.mark.parametrize("text", ["", "[1]", "stages: 1", "stages: {a: 1}", "stages: {a: {outs: [{}]}}", "a: [", "\0"])
def test_lock_that_is_none(text):
    LOCK.write_text(text)
    with pytest.raises(InputError, match=r"^dvc.lock: not a lock file of DVC \("):
        verify([])


def test_no_lock():
    with pytest.raises(InputError, match=r"^dvc.lock: not found in "):
        verify([])
