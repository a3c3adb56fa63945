"""Hours of small experiments, thousands of questions, hundreds of trainings: nothing grows but what is explained.

The night has as many experiments as end in three hours; CONCEPTBITS_SOAK_SECONDS is another time.
"""

import gc
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soak_table
import yaml
from dvc_project import Project, stages_run
from page_server import PageServer, serve_page
from soak import Process, Queue, in_use, noted_runs, read_process, rise
from stage_runner import ROOT, copy, outputs, pipeline
from training_run import train_params

from stages.artifacts import FEATURES
from stages.features import Features
from stages.search import Searcher
from stages.train import stage

#: Seconds after which no further experiment begins in the night.
SECONDS = float(os.environ.get("CONCEPTBITS_SOAK_SECONDS", "10800"))
#: Share of its median by which memory may rise in the second half of a series, see :func:`soak.rise`.
#: That of all processes at a time is looked at five times a second, and varies more.
FLAT = {"largest": 0.05, "together": 0.1, "worker": 0.05, "resident": 0.05, "in_use": 0.01}
#: Experiments from which on their memory has a trend.
TREND = 6
#: What is counted of a process.
COUNTED = ("handles", "threads")

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads memory from Linux's /proc")


@dataclass(frozen=True)
class Amount:
    """How much is done.

    Attributes:
        stages: of the project; options: of ``dvc exp run --queue``.
        seconds: after which no further experiment begins.
        requests: of the page; repetitions: of what is done within one process; readings: of its memory meanwhile.
    """

    stages: tuple[str, ...]
    options: tuple[str, ...]
    seconds: float
    requests: int
    repetitions: int
    readings: int


def seeds(seconds: float) -> str:
    """As many as have experiments enough for so many seconds: of each one six, of 20 seconds at least."""
    return ",".join(map(str, range(1, 2 + int(seconds / 120))))


SHORT = Amount(("download",), ("-S", "dataset.seed=1,2,3"), 3 * Queue.PATIENCE, 120, 18, 6)
NIGHT = Amount(tuple(pipeline()["stages"]), ("-S", "bits=8,16,24", "-S", f"seed={seeds(SECONDS)}",
               "-S", "train.epochs=2,3"), SECONDS, 4000, 300, 12)  # fmt: skip
amounts = pytest.mark.parametrize(
    "amount", [pytest.param(SHORT, marks=pytest.mark.slow, id="short"),
               pytest.param(NIGHT, marks=pytest.mark.nightly, id="night")],
)  # fmt: skip


@pytest.fixture
def project(amount: Amount, tiny_run: Path, tmp_path: Path) -> Project:
    """A project with a complete run of its stages, committed, as after ``dvc repro``."""
    project = Project(tmp_path)
    description = {"stages": {name: pipeline()["stages"][name] for name in amount.stages}}
    (project.directory / "dvc.yaml").write_text(yaml.safe_dump(description), encoding="utf-8")
    copy([path for stage in amount.stages for path in outputs(stage)], tiny_run, project.directory)
    project.dvc("commit", "--force", "--quiet")
    project.dvc("gc", "--workspace", "--force", "--quiet")  # a commit caches what else only git has
    project.commit()
    return project


@amounts
def test_queue_of_experiments(amount, project, tmp_path, record_property):
    queue = Queue(project, tmp_path / "temporary")
    cache, base = queue.cache, queue.cache.lock("HEAD")
    before, runs_before = set(cache.files()), len(cache.runs())
    assert before == cache.accounted([base])
    rows = [queue.row(), *queue.run(amount.options, amount.seconds)]
    if len(rows) > TREND:
        require_flat([row.peaks for row in rows[1:]], "largest", "together", "worker")
    assert max(row.peaks.packs for row in rows) <= 4 * len(rows)  # an experiment leaves a pack
    assert queue.restarts <= 1
    assert queue.temporaries() == [] and queue.processes() == []

    locks = {name: cache.lock(revision) for name, revision in queue.experiments().items()}
    assert len(locks) == len(rows) - 1
    every = [base, *locks.values()]
    assert set(cache.files()) == cache.accounted(every)
    assert len(cache.runs()) - runs_before == len(noted_runs(every) - noted_runs([base]))

    follow_the_recipe(queue, base, locks)
    if amount is SHORT:
        return
    done, peaks = f"{len(locks)} experiments", [row.peaks for row in rows[1:]]
    record_property("soak", told("a queue: its largest stage", done, peaks, "largest"))
    record_property("soak", told("a queue: all processes at a time", done, peaks, "together", "handles"))
    record_property("soak", told("a queue: DVC's worker", done, peaks, "worker", "worker_handles"))
    for place, (files, size) in rows[-1].disk.items():
        sizes = [row.disk[place][1] for row in rows]
        added = files - rows[0].disk[place][0], int(np.median(np.diff(sizes))), size - sizes[0]
        record_property("growth", "|".join([f"`{place}`", *(f"{number:,}" for number in added)]))


RECIPE = "## What grows on the disk"


def recipe() -> list[str]:
    """The commands of that section of docs/reliability.md, in their order."""
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    section = page.split(RECIPE + "\n")[1].split("\n## ")[0]
    return [line.split(" #")[0].strip() for line in section.splitlines() if line.startswith("    ")]


def follow_the_recipe(queue: Queue, base: dict[str, Any], locks: dict[str, dict[str, Any]]) -> None:
    """Execute every command of the recipe; what is lost and what is kept is what the page says.

    Args:
        base: the lock file of the commit; locks: of the experiments.
    """
    project, cache, kept = queue.project, queue.cache, sorted(locks)[0]
    everything, own = cache.accounted([base, *locks.values()]), cache.accounted([base])
    with_kept = cache.accounted([base, locks[kept]])
    assert own < with_kept < everything
    #: After a command: the experiments that there are, the files in the cache, whether there is a run-cache.
    expected = {
        "dvc gc --workspace --all-experiments --dry": (set(locks), everything, True),
        "dvc exp remove --keep NAME": ({kept}, everything, True),
        "dvc gc --all-experiments --all-branches --force": ({kept}, with_kept, True),
        "dvc exp remove --all-commits": (set(), with_kept, True),
        "dvc gc --workspace --dry": (set(), with_kept, True),
        "dvc gc --workspace --force": (set(), own, True),
        "rm -r .dvc/cache/runs": (set(), own, False),
    }
    for command in (commands := recipe()):
        project.run("bash", "-c", command.replace("NAME", kept))
        if command in expected:
            found = set(queue.experiments()), set(cache.files()), bool(cache.runs())
            assert found == expected[command], command
    assert expected.keys() <= set(commands)
    assert queue.cache.lock("kept") == locks[kept]
    assert len(list((project.directory / ".git" / "objects" / "pack").glob("*.pack"))) == 1
    assert project.changed() == set()
    assert stages_run(project.dvc("repro")) == []
    assert project.run(sys.executable, "-m", "stages", "verify").endswith("artifacts as noted in dvc.lock\n")
    assert set(cache.files()) == own


def require_flat(readings: list[Any], *memory: str) -> None:
    """Refuse a series of readings in which memory rises by more than its share, or handles or threads by more than
    two, which readings at random moments may differ by.

    Args:
        memory: attributes in bytes; others whose names say what they count are looked at if there are any.
    """
    counted = [name for name in vars(readings[0]) if name.endswith(COUNTED)]
    for name in [*memory, *counted]:
        values = [getattr(reading, name) for reading in readings]
        limit = 2 if name in counted else FLAT[name] * np.median(values)
        assert rise(values) <= limit, f"{name} rises: {values}"


def told(what: str, amount: str, readings: list[Any], memory: str, handles: str = "", threads: str = "") -> str:
    """A row of the table: the attributes of these names, over the second half of the readings."""
    values = [getattr(one, memory) for one in readings]
    readings = readings[len(readings) // 2 :]
    middle = float(np.median(values[len(values) // 2 :]))
    ranges = [sorted({getattr(one, name) for one in readings}) if name else [] for name in (handles, threads)]
    counted = ["-".join(map(str, dict.fromkeys([found[0], found[-1]]))) if found else "" for found in ranges]
    trend = round(rise(values) / middle, 3) + 0.0  # no -0
    return "|".join([what, amount, f"{middle / 1e6:.0f} MB", f"{trend:+.1%}", *counted])


# ---- what lives long


@dataclass(frozen=True)
class InProcess(Process):
    """A process and its :func:`soak.in_use`."""

    in_use: int


@amounts
def test_page(amount, served_project, pictures, tmp_path, record_property):
    temporary, temporaries, readings = tmp_path / "temporary", [], []
    with serve_page(served_project, temporary) as server, ThreadPoolExecutor(4) as visitors:
        for block in np.array_split(np.arange(amount.requests), amount.readings):
            statuses = list(visitors.map(partial(ask, server, pictures), block.tolist()))
            assert statuses == [EXPECTED[number % len(EXPECTED)] for number in block.tolist()]
            readings.append(read_process(server.process.pid))
            temporaries.append(sorted(temporary.rglob("*")))
    assert temporaries[-1] == temporaries[0]
    require_flat(readings, "resident")
    if amount is NIGHT:
        record_property("soak", told("the page", f"{amount.requests:,} questions", readings, "resident", *COUNTED))


#: Statuses of the answers to :func:`ask`, in turn.
EXPECTED = (200, 200, 200, 200, 200, 200, 200, 404, 400, 422)


def ask(server: PageServer, pictures: list[bytes], number: int) -> int:
    """Ask the page for something, one thing in turn after the other; the status of its answer."""
    picture = pictures[number % len(pictures)]
    turn = number % len(EXPECTED)
    if turn < 3:
        return server.search([picture, f"a dog and {number} boats", number % 300][turn], top=1 + number % 100)[0]
    if turn < 5:
        return server.search([picture, f"{number} cats"][turn - 3], rerank=100)[0]
    if turn < 8:
        return server.ask("GET", ("/", "/beginning", "/thumbnail/999999999")[turn - 5])[0]
    return server.search(("x" * 501, picture[: len(picture) // 2])[turn - 8])[0]


def search(project: Path, pictures: list[bytes]) -> Callable[[int], None]:
    """Search with an index that stays open."""
    searcher = Searcher.open(project)

    def once(number: int) -> None:
        searcher.by_id(int(searcher.index.ids[number % len(searcher.index)]), rerank=True)
        searcher.by_text(f"{number} dogs", rerank=True)
        searcher.thumbnails(searcher.by_image(pictures[number % len(pictures)]))

    return once


def open_index(project: Path, pictures: list[bytes]) -> Callable[[int], None]:
    """Open the index and the models, and search once."""
    return lambda number: search(project, pictures)(number)


def read_features(project: Path, _: list[bytes]) -> Callable[[int], None]:
    """Open the features and read all there are."""

    def once(_: int) -> None:
        with Features(project / FEATURES) as features:
            features.images()
            features.train()
            features.views()

    return once


def train(project: Path, _: list[bytes]) -> Callable[[int], None]:
    """Train, by one method and with one code length after the other."""

    def once(number: int) -> None:
        method = ("fused", "dsch", "uhscm")[number % 3]
        stage.run(train_params(method, 8 * (1 + number % 3), seed=number, epochs=4))

    return once


def case(what: Callable, amount: Amount, mark: pytest.MarkDecorator) -> Any:
    return pytest.param(what, amount, marks=mark, id=f"{what.__name__}-{mark.name}")


@pytest.mark.parametrize(("repeated", "amount"), [
    *(case(what, SHORT, pytest.mark.slow) for what in (search, train)),
    *(case(what, NIGHT, pytest.mark.nightly) for what in (search, open_index, read_features, train)),
])  # fmt: skip
def test_in_one_process(repeated, amount, tiny_run, pictures, tmp_path, monkeypatch, record_property):
    copy(["data", "models"], tiny_run, tmp_path)
    monkeypatch.chdir(tmp_path)
    once, readings = repeated(tmp_path, pictures), []  # not by a relative path, which stays the name of what is open
    for block in np.array_split(np.arange(amount.repetitions), amount.readings):
        for number in block.tolist():
            once(number)
        gc.collect()
        readings.append(InProcess(**vars(read_process(os.getpid())), in_use=in_use()))
    require_flat(readings, "resident", "in_use")
    what = "one process: " + repeated.__name__.replace("_", " ")
    if amount is NIGHT:
        record_property("soak", told(what, f"{amount.repetitions} times", readings, "in_use", *COUNTED))


# ---- what is told of it


@pytest.mark.parametrize("amount", [SHORT, NIGHT], ids=["short", "night"])
@pytest.mark.parametrize("leak", [{"resident": 10_000_000}, {"handles": 1}, {"threads": 1}])
def test_what_grows_is_refused(leak, amount):
    """One handle or thread each time, or so many bytes."""
    rng, times = np.random.default_rng(0), amount.repetitions // amount.readings
    noise = rng.integers(0, 2_000_000, amount.readings).tolist()
    flat = [Process(1, 0, "", 0, 800_000_000 + more, 0, 20, 0, 4) for more in noise]
    require_flat(flat, "resident")
    grown = [replace(one, **{name: getattr(one, name) + number * times * step for name, step in leak.items()})
             for number, one in enumerate(flat)]  # fmt: skip
    with pytest.raises(AssertionError, match=f"{next(iter(leak))} rises"):
        require_flat(grown, "resident")


RECORD = """<testsuites><testsuite>
<testcase name="a"><properties><property name="soak" value="the page|4 questions|900 MB|+0.1%|18|13"/></properties>
</testcase><testcase name="b"><properties><property name="growth" value="`.git`|3|1,000|3,000"/></properties>{}
</testcase><testcase name="c"><properties><property name="fault" value="SIGINT|train|stopped"/></properties></testcase>
</testsuite></testsuites>"""


def test_tables(tmp_path):
    (tmp_path / "record.xml").write_text(RECORD.format(""))
    assert soak_table.tables(soak_table.read(tmp_path / "record.xml")).splitlines() == [
        "| soaked | how much | memory, median | its trend | handles | threads |",
        "|---|---|---:|---:|---:|---:|",
        "| the page | 4 questions | 900 MB | +0.1% | 18 | 13 |",
        "",
        "| where | files, in all | bytes of an experiment, median | bytes, in all |",
        "|---|---:|---:|---:|",
        "| `.git` | 3 | 1,000 | 3,000 |",
    ]
    (tmp_path / "record.xml").write_text(RECORD.format("<failure/>"))
    with pytest.raises(SystemExit, match="failed: b"):
        soak_table.read(tmp_path / "record.xml")
