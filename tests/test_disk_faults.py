"""A disk that is full, read-only, forbidden or broken: one line that says so, nothing half-written, and on it goes."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disturbed import SMALL, STAGES, outcome_of
from faults import faults
from stage_runner import inputs, leftovers, link, outputs, prepare

STATES = [(stage,) for stage in STAGES]


def require_blame(message: str, stage: str, reason: str) -> None:
    """The line names an output, unfinished work, or where all that lies; and says what to do."""
    name, words = message.split(": ", 1)
    assert words == f"{reason} and repeat the command"
    assert name in outputs(stage) or name.startswith((".resume", *(f"{path}/" for path in outputs(stage)))) or (
        stage == "download" and Path(name).is_dir()
    )  # fmt: skip


def no_temporaries(directory: Path) -> bool:
    return not [left for left in leftovers(directory) if not left.startswith(".resume/")]


@pytest.mark.parametrize(
    ("stage", "share"), faults("file too large", [(stage, share) for stage in STAGES for share in (0.0, 0.6)], ci=7)
)
def test_file_too_large(stage, share, disturbed, outcome):
    """No file may grow beyond a share of the largest output."""
    files = [file for path in outputs(stage) for file in [disturbed.now / path, *(disturbed.now / path).rglob("*")]]
    limit = max(600, int(share * max(file.stat().st_size for file in files if file.is_file())))
    disturbed.start()
    message = disturbed.run(max_file_size=limit).error()
    require_blame(message, stage, "File too large; make room on that disk")
    assert not (disturbed.directory / message.split(":")[0]).is_file()
    assert no_temporaries(disturbed.directory)
    disturbed.judge()
    outcome("refused")


class Disk:
    """A small file system of its own."""

    def __init__(self, place: Path, *options: str) -> None:
        self.place = place
        place.mkdir()
        subprocess.run(["mount", *options, str(place)], check=True)

    def remount(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.place)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.place)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Disk]]:
    """Mounts a file system, by the options of ``mount``; skips where that is not allowed."""
    disks = []
    try:  # now, and not in the test, which has to tell what came of its fault
        Disk(tmp_path / "tried", "-t", "tmpfs", "tmpfs").unmount()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs to mount a file system")

    def make(*options: str) -> Disk:
        disks.append(Disk(tmp_path / "disk", *options))
        return disks[-1]

    yield make
    for made in disks:
        made.unmount()


@pytest.mark.parametrize(("stage",), faults("disk full", STATES, ci=4))
def test_disk_without_room(stage, disk, disturbed, outcome):
    disturbed.directory = prepare(disk("-t", "tmpfs", "-o", "size=64M", "tmpfs").place, SMALL)
    link(inputs(stage), disturbed.now, disturbed.directory)
    filler = disturbed.directory / "filler"
    with pytest.raises(OSError, match="No space"), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    require_blame(disturbed.run().error(), stage, "No space left on device; make room on that disk")
    assert no_temporaries(disturbed.directory)
    disturbed.require_complete()
    filler.unlink()
    disturbed.repeat()
    outcome("refused")


@pytest.mark.parametrize(("stage",), faults("disk read-only", STATES, ci=4))
def test_read_only_disk(stage, disk, disturbed, outcome):
    place = disk("-t", "tmpfs", "-o", "size=64M", "tmpfs")
    disturbed.directory = prepare(place.place, SMALL)
    link(inputs(stage), disturbed.now, disturbed.directory)
    for parent in {(disturbed.directory / path).parent for path in outputs(stage)}:
        parent.mkdir(parents=True, exist_ok=True)
    place.remount("ro")
    require_blame(disturbed.run().error(), stage, "Read-only file system; correct the permissions there")
    disturbed.require_complete()
    place.remount("rw")
    disturbed.repeat()
    outcome("refused")


@pytest.mark.parametrize(("stage",), faults("no permission to write", STATES, ci=5))
def test_no_permission_to_write(stage, disturbed, outcome):
    directory = disturbed.start()
    places = {(directory / path).parent for path in outputs(stage)}
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o555)
    message = disturbed.run(unprivileged=True).error()
    require_blame(message, stage, "Permission denied; correct the permissions there")
    assert no_temporaries(directory)
    for place in places:
        place.chmod(0o755)
    disturbed.judge()
    outcome("refused")


READ = [(stage, path) for stage in STAGES for path in inputs(stage)]
#: What the default method does not read.
UNREAD = {("train", "data/concepts.parquet"), ("train", "data/similarity.parquet")}


@pytest.mark.parametrize(
    ("stage", "path"), faults("no permission to read", [case for case in READ if case not in UNREAD], ci=5)
)
def test_no_permission_to_read(stage, path, disturbed, outcome):
    target = disturbed.start(copied=path) / path
    for file in files_of(target):
        file.chmod(0)
    message = disturbed.run(unprivileged=True).error()
    assert message.startswith(path)
    assert message.endswith(": Permission denied; correct the permissions there and repeat the command")
    assert no_temporaries(disturbed.directory)
    for file in files_of(target):
        file.chmod(0o644)
    disturbed.judge()
    outcome("refused")


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


#: What to do about a disk that cannot be read.
ADVICE = "check that path and its disk"


class BrokenDisk:
    """A file system on a file that loses its end, so that the kernel cannot read what was there: EIO."""

    def __init__(self, image: Path, content: Path, mount: Callable[..., Disk]) -> None:
        self.image = image
        with open(image, "wb") as file:
            file.truncate(32 * 2**20)
        subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", "-N", "512", "-d", str(content),
                        str(image)], check=True)  # fmt: skip
        self.place = mount("-o", "loop,ro", str(image)).place

    def lose(self, file: Path) -> None:
        """Of a file that the kernel has not read yet the second half, or all of a small one."""
        half = file.stat().st_size // 2 // 4096
        name = file.relative_to(self.place).as_posix()
        block = subprocess.run(["debugfs", "-R", f"bmap /{name} {half}", str(self.image)], check=True,
                               capture_output=True, text=True).stdout  # fmt: skip
        os.truncate(self.image, int(block) * 4096)


@pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="needs mkfs.ext4")
@pytest.mark.parametrize(("stage", "path"), faults("read error", [case for case in READ if case not in UNREAD], ci=7))
def test_read_error(stage, path, disk, tmp_path, disturbed, outcome):
    content = tmp_path / "content"
    target = disturbed.start(copied=path) / path
    content.mkdir()
    target.rename(content / target.name)
    broken = BrokenDisk(tmp_path / "image", content, disk)
    target.symlink_to(broken.place / target.name)
    files = files_of(broken.place / target.name)
    broken.lose(max(files, key=lambda file: file.stat().st_size))
    result = disturbed.run()
    came = outcome_of(result)
    if came == "finished":  # nothing in that half concerns this stage
        disturbed.require_expected()
    else:
        assert result.error().startswith(path) and result.error().endswith(": Input/output error; " + ADVICE)
    assert no_temporaries(disturbed.directory)
    target.unlink()
    target.symlink_to(disturbed.now / path)
    disturbed.judge()
    outcome(came)


@pytest.mark.parametrize(("stage", "name"), [
    ("download", "data"), ("weights", "models"), ("train", "reports"), ("baselines", "reports"),
])  # fmt: skip
def test_something_in_the_way(stage, name, disturbed):
    """A file where a directory of outputs has to go."""
    place = disturbed.start() / name
    place.write_text("in the way")
    message = disturbed.run().error()
    assert place.name in message and message.endswith("something else is in the way there; move it")
    assert place.read_text() == "in the way"
