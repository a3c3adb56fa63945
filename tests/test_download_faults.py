"""The stage ``download`` through the command line: bad input, full disk, kills at any moment."""

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from download_run import TINY, environment, images, nothing_left_over, one_line, params, run_script, script

from stages.artifacts import DATASET, IMAGES, RESUME, SPLITS
from stages.download import shards
from stages.download.stage import run
from stages.images import ImageShards, read_dataset

pytestmark = pytest.mark.usefixtures("workplace")


def test_command_says_one_line(tmp_path):
    message = one_line(run_script("imagefolder", {"path": str(tmp_path / "nothing")}), 2)
    assert message == f"error: dataset.path: {tmp_path / 'nothing'}: no such directory or archive\n"


def test_unreachable_mirror_is_exit_code_1(workplace):
    before = "import stages.download.transfer as t; t.BACK_OFF = 0.0"
    before += "; import stages.download.datasets.cifar as c; from dataclasses import replace; "
    before += "c.CIFAR10 = replace(c.CIFAR10, urls=('http://127.0.0.1:9/cifar-10-python.tar.gz',))"
    message = one_line(run_script("cifar10", {"mirrors": ["http://127.0.0.1:7/"]}, before), 1)
    assert "http://127.0.0.1:9/" in message and "http://127.0.0.1:7/cifar-10-python.tar.gz" in message


def test_read_only_place(workplace):
    workplace.joinpath("data").write_text("in the way")  # like a read-only directory, but for root as well
    message = one_line(run_script("scenes", TINY), 2)
    assert "data" in message and workplace.joinpath("data").read_text() == "in the way"


@pytest.mark.parametrize("limit", [100_000, 700_000])
def test_full_disk(limit):
    """No file may be longer than `limit`, which breaks either the first or (the metadata is longer) a later write."""
    resources = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))}
    before = "import stages.download.verify as v; v.PART_ROWS = 10"
    message = one_line(run_script("scenes", TINY, before, **resources), 2)
    assert "large" in message.lower()
    assert not IMAGES.exists() and not DATASET.exists()


def test_full_disk_while_the_result_is_written(monkeypatch):
    run(params("scenes", **TINY))
    before = {file: file.read_bytes() for file in (*IMAGES.iterdir(), DATASET, SPLITS)}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        run(params("scenes", seed=1, **TINY))
    assert {file: file.read_bytes() for file in (*IMAGES.iterdir(), DATASET, SPLITS)} == before
    assert not list(Path("data").glob(".*"))


#: Ends the process like the power plug at the `count`-th file that is renamed or moved into its place.
PLUG = """
import os, signal
if __name__ == "__main__":
    import shutil
    import stages.download.stage
    import stages.download.verify, stages.download.shards
    stages.download.verify.PART_ROWS = 30
    stages.download.shards.SHARD_BYTES = 200_000
    calls = [0]
    def plugged(inner):
        def outer(*arguments, **options):
            calls[0] += 1
            if calls[0] == {count}:
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(*arguments, **options)
        return outer
    os.replace, shutil.move = plugged(os.replace), plugged(shutil.move)
"""


def made() -> dict[str, bytes]:
    """All that the stage writes."""
    files = [file for place in (IMAGES, Path("reports"), Path("data")) for file in place.glob("*") if file.is_file()]
    return {str(file): file.read_bytes() for file in files}


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.nightly)])
def test_killed_anywhere_it_goes_on_to_the_same_bytes(step, workplace):
    """Killed at each file: what is at the target is complete, or is not there; the next run gives the same bytes."""
    options = TINY | {"seed": 1}
    assert run_script("scenes", options, PLUG.format(count=0)).returncode == 0
    undisturbed = made()
    assert len(undisturbed) > 5
    finished = 0
    for count in range(1, 100, step):
        for place in ("data", "reports", ".resume"):
            shutil.rmtree(workplace / place, ignore_errors=True)
        result = run_script("scenes", options, PLUG.format(count=count))
        assert result.returncode in (0, -signal.SIGKILL), result.stderr
        if result.returncode == 0:
            break
        if DATASET.exists():  # then it belongs to the images
            assert ImageShards().provenance.dataset == read_dataset().digest
        if IMAGES.exists():
            assert len(images()) == 100
        n_parts = len(list(RESUME.glob("download-*/[0-9]*.arrow")))
        all_there = not list(RESUME.glob("download-*"))  # it was noting how long that took
        finished += all_there
        assert run_script("scenes", options, PLUG.format(count=0)).returncode == 0
        assert made() == undisturbed and nothing_left_over(), count
        assert n_parts == (0 if all_there else min(count // 2, 4))  # 30, 30, 30 and 10 scenes, a seal after each
    assert count > 12 and finished <= 1


@pytest.mark.slow
def test_killed_with_workers_it_goes_on_to_the_same_bytes(workplace):
    """The whole group is killed when one of its parts is there; those parts are not made again."""
    options = {"queries": 500, "database": 3500, "train": 40, "workers": 2}
    assert run_script("scenes", options).returncode == 0
    undisturbed = made()
    shutil.rmtree("data")
    process = subprocess.Popen(script("scenes", options), env=environment(), start_new_session=True)
    while not (seals := list(RESUME.glob("download-*/[0-9]*.sha256"))) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {part: part.stat().st_mtime_ns for part in (seal.with_suffix("") for seal in seals)}
    assert 1 <= len(finished) < 4
    watch = "import stages.download.stage as s; s.shutil.rmtree = lambda *_, **__: None"
    assert run_script("scenes", options, watch).returncode == 0
    assert {part: part.stat().st_mtime_ns for part in finished} == finished
    assert made() == undisturbed


def flip(data, generator):
    place = generator.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << generator.randrange(8)]) + data[place + 1 :]


@pytest.mark.parametrize("unfinished", ["[0-9]*.arrow", "[0-9]*.sha256", "*/*.parquet", "*/*.sha256"])
@pytest.mark.parametrize("damage", [
    flip, lambda data, _: data[: len(data) // 2], lambda *_: b"", lambda data, random: random.randbytes(len(data)),
], ids=["flipped", "cut", "empty", "noise"])  # fmt: skip
def test_damaged_unfinished_work_is_done_again(unfinished, damage, monkeypatch):
    monkeypatch.setattr("stages.download.verify.PART_ROWS", 30)
    options = params("scenes", **TINY)
    run(options)
    undisturbed = made()
    for place in ("data", "reports"):
        shutil.rmtree(place)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("stages.download.stage.replacing_directory", interrupt)
        run(options)
    found = sorted(RESUME.glob(f"download-*/{unfinished}"))
    assert len(found) == (4 if unfinished.startswith("[") else 1)
    for file in found:
        file.write_bytes(damage(file.read_bytes(), random.Random(0)))
    run(options)
    assert made() == undisturbed and nothing_left_over()


def interrupt(*_):
    raise KeyboardInterrupt


def test_what_was_there_survives_a_kill(workplace):
    run(params("scenes", **TINY))
    before = made()
    for count in (1, 5, 6):
        assert run_script("scenes", TINY | {"seed": 1}, PLUG.format(count=count)).returncode == -signal.SIGKILL
        after = made()
        assert all(after[name] == content for name, content in before.items() if name.startswith("data/"))


#: Shards are begun early, so that there is something to wait for.
SOON = "import stages.download.verify as v; v.PART_ROWS = 100"


def wait_for_end_of_group(group: int) -> None:
    deadline = time.monotonic() + 30
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.05)


@pytest.mark.parametrize("sign", ["download-*", "download-*/*.arrow"])
def test_interrupt_is_one_line_and_ends_the_workers(workplace, sign):
    """Both while the workers start and while they work."""
    command = script("scenes", {"queries": 1000, "database": 8000}, SOON)
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True, cwd=workplace
    )
    deadline = time.monotonic() + 60
    while not list(RESUME.glob(sign)) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == "error: interrupted; the same command resumes\n"
    assert not IMAGES.exists()
    wait_for_end_of_group(process.pid)


def test_workers_end_when_the_stage_is_killed(workplace):
    command = script("scenes", {"queries": 1000, "database": 8000}, SOON)
    process = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env=environment(), start_new_session=True, cwd=workplace
    )
    deadline = time.monotonic() + 60
    while not list(RESUME.glob("download-*/*.arrow")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    wait_for_end_of_group(process.pid)
    run(params("scenes", **TINY))
    assert nothing_left_over()
