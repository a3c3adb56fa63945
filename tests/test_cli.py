"""The command line: help, exit codes, and being interrupted."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stage_runner import TINY, inputs, leftovers, link, outputs, prepare

from stages.__main__ import STAGES, one_line_errors
from stages.errors import InputError, OutsideError
from stages.params import merged

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


def start(directory, *arguments):
    """``python -m stages`` as a process (and a process group) of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "stages", *arguments], cwd=directory, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def run(directory, *arguments):
    process = start(directory, *arguments)
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


# ---- help


def test_help_lists_every_stage(tmp_path):
    code, stdout, stderr = run(prepare(tmp_path), "--help")
    assert (code, stderr) == (0, "")
    listed = re.findall(r"^\W*(\w+)  +\w", stdout.split("Commands")[1], re.MULTILINE)
    others = {"search", "serve", "export", "codes", "publish", "preset", "benchmark", "compare", "timings", "verify"}
    assert set(listed) == {*STAGES, *others}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_its_own_help(stage, run_stages, tmp_path):
    result = run_stages(tmp_path, stage, "--help").check()
    text = " ".join(re.sub(r"[^\w./,:;()`-]+", " ", result.stdout).split())
    assert stage in text and len(text) > 150  # more than the usage
    for path in outputs(stage):
        parents = [path, *(f"{parent}" for parent in Path(path).parents)]
        assert any(parent in text for parent in parents if parent != "."), f"does not say that it writes {path}"


def test_help_needs_no_heavy_library(tmp_path):
    code = """
import sys
import stages.__main__ as program
sys.argv = ["stages", "train", "--help"]
try:
    program.main()
finally:
    heavy = {"torch", "numpy", "pyarrow", "h5py", "sklearn", "faiss", "matplotlib", "open_clip", "dvc", "pandas"}
    print("HEAVY", sorted(heavy & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=prepare(tmp_path), capture_output=True, text=True)
    assert "HEAVY []" in result.stdout, result.stdout + result.stderr


def test_no_command_and_unknown_command(tmp_path):
    code, stdout, stderr = run(prepare(tmp_path))
    assert code == 2 and "Usage" in stdout + stderr
    code, _, stderr = run(tmp_path, "trian")
    assert code == 2 and "No such command" in stderr and "Traceback" not in stderr


# ---- failures in words


def ended(error, capsys):
    with pytest.raises(SystemExit) as caught, one_line_errors():
        raise error
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    return caught.value.code, printed.err.removeprefix("error: ").strip()


class OutOfMemoryError(RuntimeError):
    """Named like that of PyTorch for GPU memory."""


@pytest.mark.parametrize(("error", "code", "words"), [
    (InputError("x: bad"), 2, "x: bad"),
    (OutsideError("hub: down"), 1, "hub: down"),
    (OSError(errno.ENOSPC, "No space left on device", "data/a"), 2,
     "data/a: No space left on device; make room on that disk and repeat the command"),
    (OSError(errno.EROFS, "Read-only file system", "data/a"), 2,
     "data/a: Read-only file system; correct the permissions there and repeat the command"),
    (OSError(errno.EIO, "Input/output error"), 2, f"{Path.cwd()}: Input/output error; check that path and its disk"),
    (MemoryError(), 2, "out of memory; free some, or set smaller batch sizes in params.yaml"),
    (OutOfMemoryError("CUDA out of memory.\nTried 2 GiB"), 2,
     "out of memory (CUDA out of memory. Tried 2 GiB); free some, or set smaller batch sizes in params.yaml"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), 2,
     "out of memory (DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes); free some, or set "
     "smaller batch sizes in params.yaml"),
    (KeyboardInterrupt(), 130, "interrupted; the same command resumes"),
])  # fmt: skip
def test_failures_are_one_line(error, code, words, capsys):
    assert ended(error, capsys) == (code, words)


def test_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), one_line_errors():
        raise ZeroDivisionError


# ---- interruption


def wait_for(condition, process, seconds=100):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def interrupted(directory, stage, condition, number):
    """Send a signal once `condition` holds; what the command said."""
    process = start(directory, stage)
    wait_for(condition, process)
    os.kill(process.pid, number)
    stdout, stderr = process.communicate(timeout=60)
    assert stdout == "" and stderr.count("\n") == 1, stderr
    return process.returncode, stderr.strip()


INTERRUPTED = (signal.SIGINT, (130, "error: interrupted; the same command resumes"))
TERMINATED = (signal.SIGTERM, (143, "error: terminated; the same command resumes"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "ending"), [INTERRUPTED, pytest.param(*TERMINATED, marks=pytest.mark.nightly)])
def test_interrupted_training_is_resumed(number, ending, tmp_path, tiny_run, run_stages):
    epochs = 150
    directory = prepare(tmp_path / "run", {"train": {"epochs": epochs}})
    link(inputs("train"), tiny_run, directory)

    def saved():
        return list(directory.glob(".resume/train-*/checkpoint.pt"))

    assert interrupted(directory, "train", saved, number) == ending
    assert not (directory / "models/hashnet").exists() and not (directory / "reports/train").exists()
    assert [name.split("/")[0] for name in leftovers(directory)] == [".resume"]
    assert run_stages(directory, "train", count="stages.train.batches:batches").check().calls < epochs


@pytest.mark.slow
@pytest.mark.parametrize(("number", "ending"), [TERMINATED, pytest.param(*INTERRUPTED, marks=pytest.mark.nightly)])
def test_interrupted_workers_say_nothing(number, ending, tmp_path, tiny_run):
    """The processes that decode images get the signal too."""
    directory = prepare(tmp_path / "run", {"extract": {"workers": 2, "views": 30, "batch_size": 4}})
    link(inputs("extract"), tiny_run, directory)

    def workers_at_work():
        children = subprocess.run(["pgrep", "--parent", str(process.pid)], capture_output=True, text=True).stdout
        return len(children.split()) >= 2

    process = start(directory, "extract")
    wait_for(workers_at_work, process)
    time.sleep(0.5)
    os.killpg(process.pid, number)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.strip(), stdout) == (*ending, "")
    assert not (directory / "data/features.h5").exists()


def test_tiny_parameters_are_known():
    """Those of the tests, to the keys of the project."""
    import yaml
    from stage_runner import ROOT

    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert merged(values, TINY).keys() == values.keys()
    assert all(section.keys() <= values[name].keys() for name, section in TINY.items())
