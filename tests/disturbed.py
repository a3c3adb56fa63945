"""Runs a stage with a fault, and judges what it leaves behind."""

import hashlib
import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from stage_runner import Result, StageRunner, content, copy, inputs, leftovers, link, outputs, pipeline, prepare

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


def make_undisturbed(directory: Path, run_stages: StageRunner) -> None:
    """Two complete runs: ``now``, which is disturbed in the tests, and ``earlier``, whose artifacts lie in its way.

    ``now/runs.json`` has how often each stage changed the disk, and the seconds it took.
    """
    for name, changes in (("now", {}), ("earlier", EARLIER)):
        place = prepare(directory / name, SMALL, changes)
        runs = {}
        for stage in STAGES:
            started = time.monotonic()
            events = run_stages(place, stage, events=True).check().events
            runs[stage] = events, time.monotonic() - started
        (place / "runs.json").write_text(json.dumps(runs))


class Disturbed:
    """Runs one stage, disturbed, and judges what is left.

    Attributes:
        directory: where it runs; now, earlier: the undisturbed runs; events, seconds: changes of the disk
            and time of such a run.
    """

    def __init__(self, stage: str, directory: Path, runs: Path, run_stages: StageRunner, seen: set[str]) -> None:
        self.stage, self.directory, self.run_stages, self.seen = stage, directory, run_stages, seen
        self.now, self.earlier = runs / "now", runs / "earlier"
        self.expected = {path: content(self.now / path) for path in outputs(stage)}
        self.complete = {path: (None, self.expected[path], content(self.earlier / path)) for path in outputs(stage)}
        self.events, self.seconds = json.loads((self.now / "runs.json").read_text())[stage]

    def start(self, *, over_earlier: bool = False, copied: str | None = None) -> Path:
        """A fresh directory, with or without the artifacts of the earlier run; the input `copied` is no link."""
        shutil.rmtree(self.directory, ignore_errors=True)
        prepare(self.directory, SMALL)
        link([path for path in inputs(self.stage) if path != copied], self.now, self.directory)
        if copied:
            copy([copied], self.now, self.directory)
        if over_earlier:
            copy(outputs(self.stage), self.earlier, self.directory)
        return self.directory

    def run(self, **options: Any) -> Result:
        return self.run_stages(self.directory, self.stage, **options)

    def judge(self) -> None:
        """Each artifact is absent, new or old, and complete; the next run mends everything."""
        self.require_complete()
        state = self._state()
        if state not in self.seen:  # running from the same state again would only cost time
            self.repeat()
            self.seen.add(state)

    def require_complete(self) -> None:
        for path, allowed in self.complete.items():
            assert content(self.directory / path) in allowed, f"{path} is half-written"

    def repeat(self) -> None:
        """Run it again, undisturbed."""
        self.run().check()
        self.require_expected()

    def require_expected(self) -> None:
        for path, expected in self.expected.items():
            assert content(self.directory / path) == expected, f"{path} differs from that of an undisturbed run"
        assert leftovers(self.directory) == []

    def _state(self) -> str:
        digest = hashlib.sha256(self.stage.encode())
        for file in sorted(self.directory.rglob("*")):
            name = file.relative_to(self.directory).as_posix()
            if not file.is_symlink() and file.is_file() and not name.startswith("reports/timings/"):
                digest.update(re.sub(r"\.\d+\.\w+\.", ".", name).encode() + b"\0")
                digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()


#: Exit codes of a command that was asked to stop.
STOPPED = {128 + signal.SIGINT: "interrupted", 128 + signal.SIGTERM: "terminated"}


def outcome_of(result: Result) -> str:
    """Which of :data:`faults.OUTCOMES` it is; what the command said has the form that it must have."""
    if result.returncode < 0:
        return "died"
    if result.returncode == 0:
        assert result.stderr == "", result.stderr
        return "finished"
    message = result.error(result.returncode)
    if result.returncode in STOPPED:
        assert message == f"{STOPPED[result.returncode]}; the same command resumes"
        return "stopped"
    assert result.returncode in (1, 2)
    return "refused"
