"""A stage that is killed at any point leaves no half-written artifact, and the next run is as if nothing had been."""

import hashlib
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from stage_runner import StageRunner, content, copy, inputs, leftovers, link, outputs, pipeline, prepare

pytestmark = pytest.mark.slow

STAGES = tuple(pipeline()["stages"])

#: Still smaller than tiny: every stage runs hundreds of times.
SMALL: dict[str, Any] = {
    "dataset": {"queries": 8, "database": 60, "train": 40},
    "components": {"fine": 8, "coarse": 3, "pca": 4},
    "train": {"epochs": 3, "batch_size": 20, "hidden": 16},
}
#: What the artifacts of an earlier run differ by: nearly everything but the image features.
EARLIER: dict[str, Any] = {
    "seed": 1, "bits": 16, "dataset": {"seed": 1}, "extract": {"seed": 1},
    "concepts": {"tau": 2.0, "prompt": "{concept}"},
    "similarity": {"form": "cosine"}, "train": {"epochs": 2}, "evaluate": {"precision_at": [5]},
}  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, run_stages: StageRunner) -> tuple[Path, Path]:
    """Two complete runs: the one that is disturbed in the tests, and the earlier one whose artifacts lie in its way."""
    runs = []
    for name, changes in (("now", {}), ("earlier", EARLIER)):
        directory = prepare(tmp_path_factory.mktemp(name), SMALL, changes)
        for stage in STAGES:
            run_stages(directory, stage).check()
        runs.append(directory)
    return runs[0], runs[1]


class Disturbed:
    """Runs one stage again and again, disturbed, and judges what is left."""

    def __init__(self, stage: str, directory: Path, runs: tuple[Path, Path], run_stages: StageRunner) -> None:
        self.stage, self.directory, self.run_stages = stage, directory, run_stages
        self.now, self.earlier = runs
        self.expected = {path: content(self.now / path) for path in outputs(stage)}
        self.complete = {path: (None, self.expected[path], content(self.earlier / path)) for path in outputs(stage)}
        self.seen: set[str] = set()

    def start(self, over_earlier: bool) -> Path:
        """A fresh directory, with or without the artifacts of the earlier run."""
        shutil.rmtree(self.directory, ignore_errors=True)
        prepare(self.directory, SMALL)
        link(inputs(self.stage), self.now, self.directory)
        if over_earlier:
            copy(outputs(self.stage), self.earlier, self.directory)
        return self.directory

    def judge(self) -> None:
        """Each artifact is absent, new or old, and complete; the next run mends everything."""
        for path, allowed in self.complete.items():
            assert content(self.directory / path) in allowed, f"{path} is half-written"
        state = self._state()
        if state not in self.seen:  # running from the same state again would only cost time
            self.seen.add(state)
            self.repeat()

    def repeat(self) -> None:
        self.run_stages(self.directory, self.stage).check()
        for path, expected in self.expected.items():
            assert content(self.directory / path) == expected, f"{path} differs from that of an undisturbed run"
        assert leftovers(self.directory) == []

    def _state(self) -> str:
        digest = hashlib.sha256()
        for file in sorted(self.directory.rglob("*")):
            if not file.is_symlink() and file.is_file():
                digest.update(re.sub(r"\.\d+\.\w+\.", ".", file.relative_to(self.directory).as_posix()).encode())
                digest.update(file.read_bytes())
        return digest.hexdigest()


@pytest.fixture
def disturbed(request: pytest.FixtureRequest, tmp_path: Path, undisturbed: Any, run_stages: StageRunner) -> Disturbed:
    return Disturbed(request.param, tmp_path / "run", undisturbed, run_stages)


every_stage = pytest.mark.parametrize("disturbed", STAGES, indirect=True)

#: Trials of the stages that take longest; of the others every change of the disk, or this many.
FEWER, MANY = {"extract": 12, "map": 8, "evaluate": 8, "report": 8}, 32


def sample(total: int, most: int) -> list[int]:
    """1 to `total`, or a seeded sample of it that has the first and the last."""
    if total <= most:
        return list(range(1, total + 1))
    return sorted({1, total, *random.Random(total).sample(range(2, total), most - 2)})


@every_stage
def test_killed_before_any_change_of_the_disk(disturbed):
    stage = disturbed.stage
    for over_earlier in (False, True):
        total = disturbed.run_stages(disturbed.start(over_earlier), stage, events=True).check().events
        disturbed.judge()
    for number in sample(total, FEWER.get(stage, MANY)):
        directory = disturbed.start(over_earlier=number % 3 > 0)
        result = disturbed.run_stages(directory, stage, events=True, kill_at_event=number)
        assert result.returncode == -9 or number > total - 5, f"{number} of {total}: {result}"
        disturbed.judge()


@every_stage
def test_killed_in_the_middle_of_a_write(disturbed):
    """The kernel ends the process in the write (of whichever library) that would exceed the limit."""
    sizes = [len(data) for path in outputs(disturbed.stage) for data in content(disturbed.now / path).values()]
    generator = random.Random(disturbed.stage)
    limits = [1, *(generator.randrange(1, size) for size in generator.sample(sizes, min(4, len(sizes))) if size > 1)]
    killed = 0
    for limit in limits:
        result = disturbed.run_stages(disturbed.start(over_earlier=True), disturbed.stage, kill_at_size=limit)
        killed += result.returncode != 0
        disturbed.judge()
    assert killed


@every_stage
def test_killed_at_any_time(disturbed):
    generator = random.Random(disturbed.stage)
    directory, started = disturbed.start(over_earlier=False), time.monotonic()
    disturbed.run_stages(directory, disturbed.stage).check()
    seconds = time.monotonic() - started
    killed = 0
    for trial in range(FEWER.get(disturbed.stage, MANY) // 4):
        after = seconds * generator.uniform(0.05, 0.9)
        result = disturbed.run_stages(disturbed.start(over_earlier=trial % 2 == 0), disturbed.stage, kill_after=after)
        killed += result.returncode != 0
        disturbed.judge()
    assert killed


@pytest.mark.parametrize("disturbed", ["train"], indirect=True)
def test_training_goes_on_at_its_last_checkpoint(disturbed):
    epochs = SMALL["train"]["epochs"]
    count = {"count": "stages.train.batches:batches", "events": True}  # once an epoch
    whole = disturbed.run_stages(disturbed.start(over_earlier=False), "train", **count).check()
    assert whole.calls == epochs
    saved_work = 0
    for number in sample(whole.events, 12):
        killed = disturbed.run_stages(disturbed.start(over_earlier=False), "train", **count, kill_at_event=number)
        was_done = content(disturbed.directory / "models/hashnet") is not None  # only the tidying up was missing
        resumed = disturbed.run_stages(disturbed.directory, "train", **count).check()
        # One checkpoint an epoch: no more than one is done twice.
        assert was_done or killed.calls + resumed.calls <= epochs + 1
        saved_work += resumed.calls < epochs
        disturbed.judge()
    assert saved_work > 3


@pytest.mark.parametrize("disturbed", ["extract"], indirect=True)
def test_extraction_goes_on_at_its_last_row_group(disturbed, tmp_path):
    n_images, rows = sum(SMALL["dataset"][split] for split in ("queries", "database")), 10
    images = tmp_path / "images"
    images.mkdir()
    for file in (disturbed.now / "data/images").iterdir():
        pq.write_table(pq.read_table(file), images / file.name, row_group_size=rows)

    def start() -> Path:
        directory = disturbed.start(over_earlier=False)
        (directory / "data/images").unlink()
        (directory / "data/images").symlink_to(images)
        return directory

    count = {"count": "stages.decoding:decode", "events": True}
    whole = disturbed.run_stages(start(), "extract", **count).check()
    assert whole.calls == n_images
    expected = content(disturbed.directory / "data/features.h5")
    saved_work = 0
    for number in sample(whole.events, 6):
        killed = disturbed.run_stages(start(), "extract", **count, kill_at_event=number)
        was_done = content(disturbed.directory / "data/features.h5") is not None
        resumed = disturbed.run_stages(disturbed.directory, "extract", **count).check()
        assert was_done or killed.calls + resumed.calls <= n_images + rows
        saved_work += resumed.calls < n_images
        assert content(disturbed.directory / "data/features.h5") == expected
        assert leftovers(disturbed.directory) == []
    assert saved_work > 1


@pytest.mark.parametrize("disturbed", ["train"], indirect=True)
def test_work_of_other_parameters_is_not_resumed(disturbed):
    """As with DVC's ``persist``, a training that begins from another one's checkpoint would not be reproducible."""
    count = {"count": "stages.train.batches:batches", "events": True}
    directory = disturbed.start(over_earlier=False)
    prepare(directory, SMALL, {"train": {"lr": 0.1}})
    total = disturbed.run_stages(directory, "train", **count).check().events
    directory = disturbed.start(over_earlier=False)
    prepare(directory, SMALL, {"train": {"lr": 0.1}})
    disturbed.run_stages(directory, "train", **count, kill_at_event=total // 2)
    assert leftovers(directory) != []
    prepare(directory, SMALL)
    assert disturbed.run_stages(directory, "train", **count).check().calls == SMALL["train"]["epochs"]
    disturbed.judge()
