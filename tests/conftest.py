"""Fixtures that several test files share."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING

# As many processes as cores run tests; threads of their own would only be in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from disturbed import Disturbed, make_undisturbed
from faults import OUTCOMES
from filelock import FileLock
from stage_runner import ROOT, StageRunner, copy, pipeline, prepare

if TYPE_CHECKING:  # faiss, which few tests need
    from page_server import PageServer

    from stages.clip import ClipModel


@pytest.fixture(scope="session", autouse=True)
def hear_interrupts() -> None:
    """A shell starts what runs in its background deaf to Ctrl-C, and children inherit it; here they have to hear it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The processes that the session starts do not fetch into the cache of the user who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONCEPTBITS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def cache_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test fetches into a cache of its own, whatever the environment says of being offline."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CONCEPTBITS_CACHE", str(path))
    monkeypatch.delenv("CONCEPTBITS_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return path


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, for what runs a stage in this process and for what tries to write."""
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture(scope="session")
def inputs(made_once: Callable) -> Path:
    """The inputs of a training; a module may have others."""
    from training_run import write_training_inputs  # with torch, which takes seconds

    def make(directory: Path) -> None:
        directory.mkdir()
        with chdir(directory):
            write_training_inputs()

    return made_once("inputs", make)


@pytest.fixture
def here(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a copy of the `inputs` of the test's module."""
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CLIP model of `scenes` as ``weights`` pins it."""
    from scene_shards import pin_scenes_clip  # with torch

    return pin_scenes_clip(tmp_path_factory.mktemp("model") / "clip")


@pytest.fixture(scope="module")
def clip(pinned: Path) -> "ClipModel":
    from stages.clip import load_clip

    return load_clip(pinned)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Ray on this machine, for all tests of a file: two cores, and a store of 100 MB."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            "local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False,
            logging_level="ERROR",
        )  # fmt: skip
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def run_stages() -> Iterator[StageRunner]:
    """Runs the command line in a directory, see :class:`stage_runner.StageRunner`."""
    with StageRunner() as runner:
        yield runner


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes a directory, by its name, once for all processes that run tests; only to be read."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def made(name: str, make: Callable[[Path], None]) -> Path:
        directory, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(directory, ignore_errors=True)
                make(directory)
                done.touch()
        return directory

    return made


@pytest.fixture(scope="session")
def tiny_run(made_once: Callable, run_stages: StageRunner) -> Path:
    """A directory with all artifacts of a tiny run of ``scenes``."""

    def make(directory: Path) -> None:
        prepare(directory)
        for stage in pipeline()["stages"]:
            run_stages(directory, stage).check()

    return made_once("tiny", make)


# ---- faults (faults.py)


@pytest.fixture(scope="session")
def undisturbed(made_once: Callable, run_stages: StageRunner) -> Path:
    """The complete runs that disturbed ones are compared with, see :func:`disturbed.make_undisturbed`."""
    return made_once("undisturbed", lambda directory: make_undisturbed(directory, run_stages))


@pytest.fixture(scope="session")
def seen_states() -> set[str]:
    """States that disturbed runs have left and that the next run has mended."""
    return set()


@pytest.fixture
def disturbed(
    stage: str, tmp_path: Path, undisturbed: Path, run_stages: StageRunner, seen_states: set[str]
) -> Disturbed:
    """The `stage` of the test, to be disturbed."""
    return Disturbed(stage, tmp_path / "run", undisturbed, run_stages, seen_states)


@pytest.fixture
def outcome(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Iterator[Callable[[str], None]]:
    """Notes what came of the fault that the test injects; it must be told once."""
    (fault,) = request.node.get_closest_marker("fault").args
    told: list[str] = []

    def note(what: str) -> None:
        assert what in OUTCOMES
        told.append(what)
        record_property("fault", f"{fault.kind}|{fault.stage}|{what}")

    yield note
    assert len(told) == 1, f"{fault} was lost: {told}"


@pytest.fixture(scope="session")
def pictures(tiny_run: Path) -> list[bytes]:
    """The encoded images of the tiny run, by id."""
    from stages.images import ImageShards, read_row_group

    return [data for group in ImageShards(tiny_run / "data/images").row_groups() for *_, data in read_row_group(*group)]


@pytest.fixture(scope="session")
def served_project(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run for the page, with a map whose points are where a test expects them."""
    from page_server import write_plain_map

    project = tmp_path_factory.mktemp("page") / "project"
    copy(["data", "models", "params.yaml"], tiny_run, project)
    (project / "stages").symlink_to(ROOT / "stages")
    write_plain_map(project)
    return project


@pytest.fixture(scope="session")
def page(served_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator["PageServer"]:
    """The page of it, served by a process of its own."""
    from page_server import serve_page

    with serve_page(served_project, tmp_path_factory.mktemp("served") / "temporary") as server:
        yield server
