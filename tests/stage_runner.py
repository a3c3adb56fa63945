"""Runs stages in directories of their own, undisturbed or with a full disk or a kill in the middle."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from stages.params import merged

ROOT = Path(__file__).parents[1]

#: Changes to ``params.yaml`` with which the whole pipeline takes seconds.
TINY = {
    "dataset": {"queries": 40, "database": 300, "train": 200},
    "extract": {"views": 2, "workers": 0},
    "concepts": {"min_frequency": 0.1, "max_frequency": None},
    "components": {"fine": 20, "coarse": 4, "pca": 8},
    "train": {"epochs": 2, "batch_size": 64, "hidden": 32, "checkpoint": 1},
    "evaluate": {"precision_at": [1, 10, 100]},
}  # fmt: skip


def write_params(directory: Path, *changes: dict[str, Any]) -> None:
    """Write the project's ``params.yaml``, with `changes`, into `directory`."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for change in changes:
        values = merged(values, change)
    (directory / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


@cache
def pipeline() -> dict[str, Any]:
    """``dvc.yaml``."""
    return yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))


def outputs(stage: str) -> list[str]:
    """Declared outputs of a stage, metrics among them."""
    description = pipeline()["stages"][stage]
    entries = [*description["outs"], *description.get("metrics", [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def inputs(stage: str) -> list[str]:
    """Those dependencies of a stage that are outputs of other stages."""
    made = {path for other in pipeline()["stages"] for path in outputs(other)}
    return [path for path in pipeline()["stages"][stage]["deps"] if path in made]


def content(path: Path) -> dict[str, bytes] | None:
    """What a file or directory holds, byte by byte; None where there is neither."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}
    return {"": path.read_bytes()} if path.exists() else None


def leftovers(directory: Path) -> list[str]:
    """Temporaries and unfinished work below `directory`."""
    found = [*directory.glob("[!.]*/**/.*.tmp*"), *directory.glob(".resume/*")]
    return sorted(file.relative_to(directory).as_posix() for file in found)


def nothing_made(directory: Path, stage: str) -> bool:
    """No output is there, and no temporary; only unfinished work that may be resumed."""
    present = [path for path in outputs(stage) if (directory / path).exists()]
    return not present and not [name for name in leftovers(directory) if not name.startswith(".resume/")]


@dataclass(frozen=True)
class Trial:
    """One run of the command line.

    Attributes:
        arguments: of ``python -m stages``; cwd: where; output: directory for what it prints.
        count: a function, ``module:name``, whose calls are counted.
        events: count the calls that change the disk; at_event: just before that one (from 1) something happens.
        then: what: a signal to itself, like SIGKILL; "params": ``params.next.yaml`` becomes ``params.yaml``; or, like
            "clock-3600", the clock jumps by so many seconds.
        max_file_size: bytes that a file may have, as on a full disk; kill_at_size: killed in the write beyond them.
        kill_after: killed after this many seconds.
        unprivileged: permissions of files hold for root as well.
    """

    arguments: list[str]
    cwd: str
    output: str
    count: str = ""
    events: bool = False
    at_event: int | None = None
    then: str = "SIGKILL"
    max_file_size: int | None = None
    kill_at_size: int | None = None
    kill_after: float | None = None
    unprivileged: bool = False


@dataclass(frozen=True)
class Result:
    """What came of a trial; a negative returncode is a signal."""

    returncode: int
    stdout: str
    stderr: str
    events: int
    calls: int
    peak_kib: int

    def check(self) -> "Result":
        assert self.returncode == 0, self.stderr
        return self

    def error(self, code: int = 2) -> str:
        """The one line that the command must have ended with."""
        assert self.returncode == code, (self.returncode, self.stderr)
        assert self.stderr.startswith("error: ") and self.stderr.count("\n") == 1, self.stderr
        return self.stderr.removeprefix("error: ").rstrip("\n")


class StageRunner:
    """A :mod:`stage_server` to ask; use it as a context manager."""

    def __enter__(self) -> "StageRunner":
        self._output = tempfile.mkdtemp()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "stage_server.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=environment, cwd=self._output,
        )  # fmt: skip
        assert self._server.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._server.stdout.close()
        shutil.rmtree(self._output)

    def __call__(self, cwd: Path, *arguments: str, **options: Any) -> Result:
        """Run ``python -m stages`` with `arguments` in `cwd`; `options` are those of :class:`Trial`."""
        return self.together(cwd, *arguments, runs=1, **options)[0]

    def together(self, cwd: Path, *arguments: str, runs: int = 2, **options: Any) -> list["Result"]:
        """The same, so many times at once."""
        places = [Path(self._output, str(number)) for number in range(runs)]
        for place in places:
            place.mkdir(exist_ok=True)
        trials = [asdict(Trial(list(arguments), str(cwd), str(place), **options)) for place in places]
        print(json.dumps(trials), file=self._server.stdin, flush=True)
        answers = json.loads(self._server.stdout.readline())
        return [
            Result(**answer, **{name: (place / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")})
            for answer, place in zip(answers, places, strict=True)
        ]


#: Inputs that a stage reads with these parameters only.
READ_WITH: dict[tuple[str, str], dict[str, Any]] = {
    ("train", "data/concepts.parquet"): {"method": "duh_eg"}, ("train", "data/similarity.parquet"): {"method": "uhscm"},
}  # fmt: skip


def prepare(directory: Path, *changes: dict[str, Any]) -> Path:
    """Make `directory` one in which stages can run, with the tiny parameters and `changes`."""
    directory.mkdir(parents=True, exist_ok=True)
    write_params(directory, TINY, *changes)
    if not (directory / "stages").exists():
        (directory / "stages").symlink_to(ROOT / "stages")
    return directory


def link(paths: list[str], source: Path, target: Path) -> None:
    """Put links to artifacts of the run `source` into `target`, like those into a DVC cache."""
    for path in paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).symlink_to(source / path)


def copy(paths: list[str], source: Path, target: Path) -> None:
    """Put copies of artifacts of the run `source` into `target`."""
    for path in paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        if (source / path).is_dir():
            shutil.copytree(source / path, target / path)
        else:
            shutil.copyfile(source / path, target / path)
