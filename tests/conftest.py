"""Fixtures that several test files share."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from stage_runner import StageRunner, pipeline, prepare


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


@pytest.fixture
def here(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a copy of the `inputs` of the test's module."""
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def run_stages() -> Iterator[StageRunner]:
    """Runs the command line in a directory, see :class:`stage_runner.StageRunner`."""
    with StageRunner() as runner:
        yield runner


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, run_stages: StageRunner) -> Path:
    """A directory with all artifacts of a tiny run of ``scenes``; only to be read."""
    directory = prepare(tmp_path_factory.mktemp("tiny"))
    for stage in pipeline()["stages"]:
        run_stages(directory, stage).check()
    return directory
