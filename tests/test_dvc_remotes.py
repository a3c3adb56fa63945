"""A teammate's run from a DVC remote, a directory or an S3-compatible server: pulled, nothing is left to be done."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import yaml
from s3_server import BUCKET, s3_server
from stage_runner import ROOT, content, outputs, pipeline, prepare

pytestmark = pytest.mark.slow

STAGES = ("download", "weights")
ARTIFACTS = [path for stage in STAGES for path in outputs(stage)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nobody else's settings of DVC and git, and no store but that of the tests."""
    place = tmp_path_factory.mktemp("settings")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("DVC", "GIT_"))]:
            patch.delenv(name)
        for name, value in {
            "DVC_GLOBAL_CONFIG_DIR": place / "config", "DVC_SITE_CACHE_DIR": place / "site", "DVC_NO_ANALYTICS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull, "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }.items():  # fmt: skip
            patch.setenv(name, str(value))
        with s3_server():
            yield


def git(directory: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments], cwd=directory, check=True)


@pytest.fixture(scope="module")
def mine(settings: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the first two stages run."""
    from dvc.repo import Repo

    project = prepare(tmp_path_factory.mktemp("mine") / "project")
    (project / "stages").unlink()
    shutil.copytree(ROOT / "stages", project / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    ignored = [f"{folder}/.gitignore" for folder in (".", "data", "models", "reports")]
    for name in (".dvcignore", ".dvc/config", *ignored):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, project / name)
    described = {stage: pipeline()["stages"][stage] for stage in STAGES}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": described}), encoding="utf-8")
    git(project, "init", "--quiet")
    with chdir(project), Repo() as repo:
        repo.reproduce()
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "run")
    return project


@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_after_a_pull_there_is_nothing_to_do(mine: Path, tmp_path: Path, kind: str) -> None:
    from dvc.repo import Repo

    remote = {"url": str(tmp_path / "storage")}
    if kind == "s3":
        remote = {"url": f"s3://{BUCKET}/team", "endpointurl": os.environ["AWS_ENDPOINT_URL"]}
    shared = {"core": {"remote": "storage", "analytics": False}, "remote": {"storage": remote}}
    with chdir(mine), Repo(config=shared) as repo:
        assert repo.push() > 0
        assert repo.push() == 0
    theirs = tmp_path / "theirs"
    git(tmp_path, "clone", "--quiet", str(mine), str(theirs))
    assert not any((theirs / path).exists() for path in ARTIFACTS)
    with chdir(theirs), Repo(config=shared) as repo:
        repo.pull()
        for path in ARTIFACTS:
            assert content(theirs / path) == content(mine / path), path
        assert repo.status() == {}
        assert repo.reproduce() == []
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=theirs, capture_output=True, text=True, check=True)
    assert changed.stdout == ""
