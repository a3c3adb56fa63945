"""One of several processes that work for a stage dies: a worker of Ray, or a rank that torchrun started."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from disturbed import SMALL, Disturbed, outcome_of
from faults import faults
from rank_processes import Ended, command, launch
from stage_runner import ROOT, Result, StageRunner, inputs, link, prepare

from stages import __main__ as program
from stages.artifacts import IMAGES, RESUME

#: Stages that Ray can work for.
BY_RAY = ("extract", "encode")
#: Images of a row group: Ray has some twelve parts to give out.
GROUP = 6
#: Seconds in which something has to happen.
PATIENCE = 300


# ---- Ray


@pytest.fixture(scope="module")
def of_row_groups(tmp_path_factory: pytest.TempPathFactory, undisturbed: Path, run_stages: StageRunner) -> Path:
    """The undisturbed runs with small row groups, and a backbone that encodes them; all made without Ray."""
    from stages.backbone import BackboneConfig, BackboneNet, build_backbone
    from stages.features import Features
    from stages.hashnet import save_hashnet

    place = tmp_path_factory.mktemp("row-groups")
    (place / "earlier").symlink_to(undisturbed / "earlier")
    now = prepare(place / "now", SMALL)
    link([path for path in inputs("extract") if path != str(IMAGES)], undisturbed / "now", now)
    (now / IMAGES).mkdir(parents=True)
    for file in (undisturbed / "now" / IMAGES).iterdir():
        pq.write_table(pq.read_table(file), now / IMAGES / file.name, row_group_size=GROUP)
    run_stages(now, "extract").check()
    with chdir(now), Features() as features:
        config = BackboneConfig("timm/resnet10t", None, 512, 16, "uhscm", 32, (0.5,) * 3, (0.2,) * 3)
        net = BackboneNet(config, build_backbone(config.model, None))
        save_hashnet(net, replace(features.provenance, stage="train"))
    run_stages(now, "encode").check()
    (now / "runs.json").write_text(json.dumps({stage: (0, 0.0) for stage in BY_RAY}))
    return place


class Here(Disturbed):
    """Runs its stage in this process, whose Ray it takes."""

    def run(self, **options: Any) -> Result:
        code, said, told = 0, io.StringIO(), io.StringIO()
        with chdir(self.directory), redirect_stdout(said), redirect_stderr(told):
            try:
                with program.one_line_errors():
                    program.run_stage(self.stage)
            except SystemExit as end:
                code = end.code
        return Result(code, said.getvalue(), told.getvalue(), 0, 0, 0)


def kill_one(
    name: str, above: int, done: Callable[[], bool], seconds: float, over: Callable[[], bool],
    generator: random.Random,
) -> bool:  # fmt: skip
    """SIGKILL one of the processes below the process `above` that are called so, a moment after something is done.

    Args:
        over: whether all has ended, so that there is nobody left.

    Returns:
        whether somebody was killed.
    """
    while not done() and not over():
        time.sleep(0.005)
    time.sleep(seconds)
    while not over():
        found = []
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(above).children(recursive=True):
                with suppress(psutil.Error):
                    if name in " ".join(process.cmdline()):
                        found.append(process)
        with suppress(IndexError, psutil.NoSuchProcess):
            generator.choice(sorted(found, key=lambda process: process.pid)).kill()
            return True
        time.sleep(0.005)
    return False


@pytest.mark.parametrize(("stage", "number"), faults(
    "Ray worker killed", [(stage, number) for stage in BY_RAY for number in range(12)], ci=1
))  # fmt: skip
def test_a_ray_worker_is_killed(stage, number, tmp_path, of_row_groups, seen_states, local_ray, outcome):
    """Before, while or after its model is loaded; or that which counts how often a row group was begun."""
    generator = random.Random(f"{stage} {number}")
    name = "_Ledger" if number % 4 == 3 else "MapWorker"
    parts, seconds = generator.choice([0, 0, 1, 2, 4]), generator.choice([0.0, generator.uniform(0, 0.3)])
    seconds = 0.0 if parts > 1 else seconds  # by then it may soon be over
    disturbed = Here(stage, tmp_path / "run", of_row_groups, None, seen_states)
    directory = disturbed.start(over_earlier=number % 2 == 0)
    prepare(directory, SMALL, {stage: {"engine": "ray"}})
    over = threading.Event()
    with ThreadPoolExecutor(1) as watch:
        killed = watch.submit(
            kill_one, name, os.getpid(), lambda: len(list(directory.glob(f"{RESUME}/*/*.npz"))) >= parts, seconds,
            over.is_set, generator,
        )  # fmt: skip
        try:
            result = disturbed.run()
        finally:
            over.set()
    assert killed.result(), f"nobody was killed: {name}, {parts} parts, {seconds} s"
    came = outcome_of(result)
    if came == "finished":
        disturbed.require_expected()
    prepare(directory, SMALL)
    disturbed.judge()
    outcome(came)


# ---- ranks


class Ranks(Disturbed):
    """Runs its stage in two ranks of this machine."""

    def run(self, *, victim: int = 0, seconds: float = 0.0, **options: Any) -> Result:
        """What the other rank says and ends with when the `victim` is killed after so many seconds, if at all."""
        if seconds:
            ended = launch([self.directory] * 2, mortal, self.stage, victim, seconds, agent=True)
            assert ended[victim] == Ended(-signal.SIGALRM, "")
        else:
            ended = launch([self.directory] * 2, command, self.stage)
            assert ended[0] == ended[1]
        other = ended[1 - victim]
        return Result(other.exitcode, "", other.stderr, 0, 0, 0)


@pytest.fixture(scope="module")
def in_ranks(tmp_path_factory: pytest.TempPathFactory, undisturbed: Path) -> Path:
    """The undisturbed runs, of which two ranks have done the training."""
    place = tmp_path_factory.mktemp("ranks")
    (place / "earlier").symlink_to(undisturbed / "earlier")
    now = prepare(place / "now", SMALL)
    link(inputs("train"), undisturbed / "now", now)
    launch([now], int)  # starts the process that ranks are forked from
    started = time.monotonic()
    assert launch([now] * 2, command, "train") == [Ended(0, "")] * 2
    (now / "runs.json").write_text(json.dumps({"train": (0, time.monotonic() - started)}))
    return place


def mortal(stage: str, victim: int, seconds: float) -> None:
    """A rank; the `victim` ends by a signal after so many seconds, if need be with nothing left to do."""
    if os.environ["RANK"] == str(victim):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # nobody catches it: like SIGKILL
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        command(stage)
    finally:
        if os.environ["RANK"] == str(victim):
            signal.pause()


@pytest.mark.parametrize(
    ("stage", "number"), faults("rank killed", [("train", number) for number in range(24)], ci=2)
)
def test_a_rank_is_killed(stage, number, tmp_path, in_ranks, seen_states, outcome):
    """Before the ranks have met, while they train, or while the first one writes."""
    generator = random.Random(number)
    disturbed = Ranks(stage, tmp_path / "run", in_ranks, None, seen_states)
    disturbed.start(over_earlier=number % 2 == 0)
    seconds = generator.uniform(0.02, 0.8) * disturbed.seconds
    came = outcome_of(disturbed.run(victim=number // 2 % 2, seconds=seconds))
    if came == "finished":  # it was its turn to end
        disturbed.require_expected()
    disturbed.judge()
    outcome(came)


def by_torchrun(directory: Path) -> subprocess.Popen:
    """``torchrun --nproc-per-node=2 -m stages train``."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "stages", "train"],
        cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def seconds_of_torchrun(tmp_path_factory: pytest.TempPathFactory, in_ranks: Path) -> float:
    """That it takes; it trains what the ranks do that the other tests start."""
    disturbed = Ranks("train", tmp_path_factory.mktemp("torchrun") / "run", in_ranks, None, set())
    started = time.monotonic()
    done = by_torchrun(disturbed.start())
    assert done.communicate(timeout=PATIENCE)[0] == "" and done.returncode == 0
    disturbed.require_expected()
    return time.monotonic() - started


@pytest.mark.parametrize(("stage", "number"), faults("rank killed", [("train", number) for number in range(8)], ci=0))
def test_a_rank_of_torchrun_is_killed(stage, number, tmp_path, in_ranks, seconds_of_torchrun, seen_states, outcome):
    generator = random.Random(number)
    moment, killed = generator.uniform(0.1, 0.9) * seconds_of_torchrun, False
    for attempt in range(5):
        disturbed = Ranks(stage, tmp_path / f"run{attempt}", in_ranks, None, seen_states)
        running = by_torchrun(disturbed.start(over_earlier=number % 2 == 0))
        ready = time.monotonic() + moment
        killed = kill_one(
            "-m stages train", running.pid, lambda ready=ready: time.monotonic() > ready, 0,
            lambda running=running: running.poll() is not None, generator,
        )  # fmt: skip
        said, told = running.communicate(timeout=PATIENCE)
        if killed:
            break
        moment /= 2  # it was over before: the machine has less else to do than when the seconds were taken
    assert killed and said == "" and running.returncode
    # torchrun says more than enough; of the other rank there is a line if it was there already.
    lines = [line for line in told.splitlines(keepends=True) if line.startswith("error: ")]
    code = 143 if "terminated" in "".join(lines) else 1
    came = outcome_of(Result(code, "", "".join(lines), 0, 0, 0)) if lines else "died"
    disturbed.judge()
    outcome(came)
