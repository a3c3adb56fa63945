"""Writing beside and renaming, what killed runs leave, errors of the disk, provenance."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from stage_runner import ROOT

from stages.artifacts import (
    FEATURES,
    HASHNET,
    STALE_AFTER,
    Provenance,
    damaged,
    fingerprint,
    read_json,
    rebuild_hint,
    replacing,
    replacing_directory,
    resume_directory,
    sha256,
    write_json,
    writing,
)
from stages.errors import InputError


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(directory="."):
    return sorted(path.name for path in Path(directory).iterdir())


@pytest.fixture(scope="module")
def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# ---- replacing


def test_new_file_appears_when_complete(workplace):
    target = Path("deep/down/table.parquet")
    with replacing(target) as temporary:
        assert temporary.parent.samefile(target.parent) and temporary.suffix == ".parquet"
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new" and names("deep/down") == ["table.parquet"]
    assert target.stat().st_mode & 0o777 == 0o644


def test_failure_keeps_the_old_file():
    Path("a.json").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(Path("a.json")) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert Path("a.json").read_text() == "old" and names() == ["a.json"]


def test_read_only_link_into_a_cache_is_replaced_not_followed():
    cached = Path("cached")
    cached.write_text("old")
    cached.chmod(0o444)
    Path("a.json").symlink_to(cached.absolute())
    write_json(Path("a.json"), {"new": "ü"})
    assert cached.read_text() == "old" and not Path("a.json").is_symlink()
    assert read_json(Path("a.json")) == {"new": "ü"}


def test_directory_is_replaced_as_a_whole():
    target = Path("models/net")
    for content in ("old", "new"):
        with replacing_directory(target) as temporary:
            (temporary / content).write_text(content)
    assert names(target) == ["new"] and names("models") == ["net"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("there", ["file", "link", "dangling"])
def test_directory_takes_the_place_of_a_file_or_link(there):
    Path("elsewhere").mkdir()
    Path("elsewhere/kept").touch()
    target = Path("net")
    if there == "file":
        target.touch()
    else:
        target.symlink_to("elsewhere" if there == "link" else "nowhere")
    with replacing_directory(target) as temporary:
        (temporary / "new").touch()
    assert names(target) == ["new"] and not target.is_symlink() and names("elsewhere") == ["kept"]


def test_failure_keeps_the_old_directory():
    Path("net").mkdir()
    Path("net/old").touch()
    with pytest.raises(ZeroDivisionError), replacing_directory(Path("net")) as temporary:
        (temporary / "new").touch()
        raise ZeroDivisionError
    assert names("net") == ["old"] and names() == ["net"]


def test_old_directory_goes_at_once(monkeypatch):
    """Deleted file by file in its place, a kill would leave half of it there."""
    Path("net").mkdir()
    Path("net/old").touch()
    removed = []
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: removed.append(Path(path).name))
    with replacing_directory(Path("net")) as temporary:
        (temporary / "new").touch()
    assert names("net") == ["new"] and all(name.startswith(".net.") for name in removed)


# ---- what killed runs leave


@pytest.fixture
def here():
    """How temporaries name this machine."""
    with replacing(Path("elsewhere/any")) as temporary:
        pass
    shutil.rmtree("elsewhere")
    return temporary.name.split(".")[2].split("-")[0]


@pytest.mark.parametrize("replace", [replacing, replacing_directory, writing])
def test_leftovers_of_ended_processes_are_removed(replace, here, dead_process):
    Path(f".a.h5.{here}-{dead_process}.x1.tmp.h5").write_text("half")
    Path(f".a.h5.{here}-{dead_process}.x2.tmp").mkdir()
    Path(f".a.h5.{here}-{dead_process}.x2.tmp/file").touch()
    Path(f".a.h5.{here}-{dead_process}.x3.old.tmp").mkdir()
    with replace(Path("a.h5")):
        pass
    assert names() == ["a.h5"]


def test_temporaries_of_running_processes_and_of_other_files_stay(here, dead_process):
    others = [f".a.h5.{here}-{os.getppid()}.x.tmp.h5", f".b.h5.{here}-{dead_process}.x.tmp.h5",
              f".a.h5.bak.{here}-{dead_process}.x.tmp", f".a.h5.{here}-{dead_process}.txt", ".a.h5.tmp"]  # fmt: skip
    for name in others:
        Path(name).touch()
    with replacing(Path("a.h5")):
        pass
    assert names() == sorted(["a.h5", *others])


@pytest.mark.parametrize("place", ["this machine", "another"])
def test_old_temporaries_are_removed_though_their_number_is_in_use(here, place):
    old = Path(f".a.h5.{here if place == 'this machine' else 'f00d'}-{os.getppid()}.x.tmp.h5")
    old.touch()
    os.utime(old, (0, time.time() - STALE_AFTER - 60))
    with replacing(Path("a.h5")):
        pass
    assert names() == ["a.h5"]


def test_temporaries_of_other_machines_stay(here, dead_process):
    """This one cannot tell whether their process runs."""
    other = f".a.h5.f00d-{dead_process}.x.tmp.h5"
    Path(other).touch()
    with replacing(Path("a.h5")):
        pass
    assert names() == [other, "a.h5"]


def test_a_directory_is_looked_through_once(monkeypatch):
    """Otherwise the time for n parts would grow with n squared."""
    looked, glob = [], Path.glob
    monkeypatch.setattr(Path, "glob", lambda place, pattern: looked.append(place.name) or glob(place, pattern))
    for number in range(3):
        with replacing(Path(f"parts/{number}")):
            pass
    assert names("parts") == ["0", "1", "2"] and looked == ["parts"]


#: Holds a temporary of a.h5 while another such process comes and goes, which has a namespace of its own: there is no
#: process with the number of the first.
HOLDS = """
import pathlib, subprocess, sys
from stages.artifacts import replacing
with replacing(pathlib.Path("a.h5")) as temporary:
    temporary.write_text(sys.argv[1])
    if sys.argv[1] == "first":
        subprocess.run(sys.argv[2:], check=True)
"""


def test_two_machines_write_beside_each_other():
    alone = ["unshare", "--pid", "--fork", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces here")
    command = [sys.executable, "-c", HOLDS]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "first", *alone, *command, "second"], check=True, env=environment)
    assert Path("a.h5").read_text() == "first" and names() == ["a.h5"]


def test_only_work_on_the_same_inputs_is_resumed():
    first = resume_directory("train", {"lr": 1, "path": Path("x")})
    (first / "checkpoint").touch()
    other_stage = resume_directory("extract", 1)
    assert resume_directory("train", {"path": Path("x"), "lr": 1}) == first and names(first) == ["checkpoint"]
    second = resume_directory("train", {"lr": 2, "path": Path("x")})
    assert second != first and names(".resume") == sorted([second.name, other_stage.name])
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})


# ---- errors of the disk


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError("Unable to write (file write failed: filename = 'data/.a.h5.1.tmp.h5', errno = 28, error message = 'No')"),
    OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
])  # fmt: skip
@pytest.mark.parametrize("replace", [replacing, replacing_directory, writing])
def test_full_disk_names_the_artifact(replace, error):
    with pytest.raises(OSError, match="No space left") as caught, replace(Path("data/a.h5")):
        raise error
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "data/a.h5") and names("data") == []


def test_read_only_place_names_the_artifact(monkeypatch):
    def read_only(*_, **options):
        raise OSError(errno.EROFS, "Read-only file system", options["dir"] / ".a.h5.1.x.tmp.h5")

    monkeypatch.setattr("tempfile.mkstemp", read_only)
    with pytest.raises(OSError) as caught, replacing(Path("data/a.h5")):
        pass
    assert caught.value.filename == "data/a.h5"


def test_errors_of_other_places_and_other_errors_keep_their_words():
    with pytest.raises(PermissionError) as caught, replacing(Path("data/a.h5")):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/input")
    assert caught.value.filename == "/elsewhere/input"
    with pytest.raises(FileNotFoundError) as caught, replacing(Path("data/a.h5")):
        Path("data/input").read_bytes()
    assert caught.value.filename == "data/input"
    with pytest.raises(InputError, match="errno 28 in a file name"), replacing(Path("data/a.h5")):
        raise InputError("errno 28 in a file name")


@contextmanager
def full_disk(limit):
    """No file may grow beyond `limit` bytes, says the kernel."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [0, 1, 1000, 5000])
def test_hdf5_survives_a_full_disk(limit):
    """HDF5 itself would end the process with a segmentation fault."""
    with full_disk(limit), pytest.raises(OSError, match="File too large") as caught:
        with writing(Path("data/a.h5")) as target, h5py.File(target, "w") as file:
            file["a"] = np.arange(100_000)
            chunked = file.create_dataset("b", (50, 1000), "f4", chunks=(10, 1000))
            chunked[:] = 1
    assert caught.value.filename == "data/a.h5" and names("data") == []


@pytest.mark.parametrize("limit", [0, 1000])
def test_checkpoint_on_a_full_disk(limit):
    """PyTorch itself would tell of an unexpected position in the file."""
    with full_disk(limit), pytest.raises(OSError, match="File too large") as caught:
        with writing(Path("data/a.pt")) as target:
            torch.save(torch.zeros(10_000), target)
    assert caught.value.filename == "data/a.pt" and names("data") == []


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, TimeoutError)])
def test_interruption_waits_for_the_end_of_the_file(number, error):
    """It would come up in the middle of a write that HDF5 or PyTorch asked for."""

    def handler(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(error), writing(Path("a.pt")) as target:
            os.kill(os.getpid(), number)
            torch.save(torch.arange(10), target)
        assert torch.load("a.pt", weights_only=True).tolist() == list(range(10)) and names() == ["a.pt"]
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_writing_in_a_thread():
    def work():
        with writing(Path("a")) as target:
            target.write(b"abc")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert Path("a").read_bytes() == b"abc"


def test_written_hdf5_is_whole():
    rows = np.random.default_rng(0).random((500, 100))
    with writing(Path("a.h5")) as target, h5py.File(target, "w") as file:
        file.attrs["a"] = "b"
        file["rows"] = rows
        chunked = file.create_dataset("chunked", rows.shape, "f4", chunks=(50, 100))
        for start in range(0, 500, 30):
            chunked[start : start + 30] = rows[start : start + 30]
    with h5py.File("a.h5") as file:
        assert file.attrs["a"] == "b"
        np.testing.assert_array_equal(file["rows"][:], rows)
        np.testing.assert_allclose(file["chunked"][:], rows, rtol=1e-6)


def test_writing_survives_short_writes(monkeypatch):
    """The kernel writes no more than 2 GiB at a time."""
    inner = os.write
    monkeypatch.setattr("os.write", lambda descriptor, data: inner(descriptor, data[:7]))
    with writing(Path("a")) as target:
        assert target.write(b"0123456789" * 10) == 100
    assert Path("a").read_bytes() == b"0123456789" * 10


# ---- JSON, provenance, hints


@pytest.mark.parametrize(("content", "problem"), [
    (b"{", "not valid JSON"), (b"", "not valid JSON"), (b"\xff\xfe", "not valid JSON"), (b"[1]", "not a JSON object"),
])  # fmt: skip
def test_damaged_json(content, problem):
    Path("data").mkdir()
    Path("data/dataset.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"data/dataset.json: {problem}.*; rebuild it with `dvc repro download`"):
        read_json(Path("data/dataset.json"))


def test_missing_json():
    with pytest.raises(InputError, match=r"data/dataset.json: not found; rebuild it with `dvc repro download`"):
        read_json(Path("data/dataset.json"))


def test_provenance_goes_through_json():
    provenance = Provenance("mine", "d" * 64, "e" * 64, {"tau": 3.0}, {"torch": "2"})
    assert Provenance.from_json(provenance.to_json(), FEATURES) == provenance
    for text in (None, "", "{", "[]", '{"other": 1}', '"text"'):
        with pytest.raises(InputError, match="no provenance"):
            Provenance.from_json(text, FEATURES)


def test_other_data_set_or_model_is_refused():
    mine, clip = Provenance("train", "d1" * 32, "e1" * 32), Path("models/clip")
    mine.require_same(Provenance("weights", model="e1" * 32), HASHNET, clip)
    mine.require_same(Provenance("download", dataset="d1" * 32), HASHNET, clip)
    with pytest.raises(InputError) as caught:
        mine.require_same(Provenance("extract", "d2" * 32, "e1" * 32), HASHNET, FEATURES)
    assert str(caught.value) == (
        "models/hashnet: made with another data set (d1d1d1d1d1d1) than data/features.h5 (d2d2d2d2d2d2); "
        "rebuild it with `dvc repro train`"
    )
    with pytest.raises(InputError, match=r"another model \(e1e1e1e1e1e1\)"):
        mine.require_same(Provenance("extract", "d1" * 32, "e2" * 32), HASHNET, FEATURES)


def test_hint_knows_files_within_artifacts():
    assert rebuild_hint(Path("data/images/images-00000.parquet")) == "rebuild it with `dvc repro download`"
    assert rebuild_hint(Path("somewhere")) == "rebuild it"
    assert str(damaged(Path("x"), "two\n  lines")) == "x: two lines; rebuild it"


def test_sha256():
    Path("a").write_bytes(b"abc")
    assert sha256(Path("a")).startswith("ba7816bf")
