"""The worked examples of ``docs/extending.md``, applied to a copy of the project and run on tiny data."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from stage_runner import ROOT, TINY, inputs, link, write_params

from stages.images import ImageShards, read_dataset

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "extending.md"

#: Where each stage of the page runs, and what its ``params.yaml`` has beside the tiny parameters.
CHANGES = {
    "download": {"dataset": {"name": "digits", "queries": None, "database": None, "train": None}},
    "mine": {"concepts": {"vocabulary": "words.txt"}},
    "train": {"method": "decorrelated"},
    "baselines": {},
}  # fmt: skip

#: Runs each stage of the copy in its directory; one process, since most of the time is that of imports.
PROGRAM = """
import os, sys
from stages.__main__ import run_stage
for stage in sys.argv[2:]:
    os.chdir(os.path.join(sys.argv[1], stage))
    run_stage(stage)
"""


def blocks() -> list[tuple[str, str, str]]:
    """(language, file, content) of the blocks that have a file."""
    return re.findall(r"^```(\w+) (\S+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def changed(text: str, diff: str) -> str:
    """`text` after a diff without line numbers, whose parts are separated by a line of three points."""
    for part in diff.split("...\n"):
        lines = part.splitlines(keepends=True)
        assert all(line[0] in " +-" for line in lines), part
        before = "".join(line[1:] for line in lines if line[0] != "+")
        assert text.count(before) == 1, f"there {text.count(before)} times:\n{before}"
        text = text.replace(before, "".join(line[1:] for line in lines if line[0] != "-"))
    return text


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with all that the page adds."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("stages", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "dvc.yaml", copy / "dvc.yaml")
    for language, name, content in blocks():
        if language == "diff":
            content = changed((copy / name).read_text(encoding="utf-8"), content)
        else:
            assert not (copy / name).exists()
        (copy / name).write_text(content, encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def runs(project: Path, tiny_run: Path) -> Path:
    """A directory for each stage of the page, in which it has run."""
    page = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^    python -m stages (\w+)$", page, re.MULTILINE) == list(CHANGES)
    for stage, changes in CHANGES.items():
        directory = project / "runs" / stage
        directory.mkdir(parents=True)
        write_params(directory, TINY, changes)
        link(inputs(stage), tiny_run, directory)
    shutil.copyfile(project / "words.txt", project / "runs" / "mine" / "words.txt")
    environment = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(project / "runs"), *CHANGES]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return project / "runs"


def test_the_data_set(runs, monkeypatch):
    monkeypatch.chdir(runs / "download")
    dataset, shards = read_dataset(), ImageShards()
    assert (dataset.name, dataset.protocol, len(dataset.class_names)) == ("digits", "holdout", 10)
    assert dataset.counts["images"] == 1797 and dataset.counts["query"] == 179
    labels = shards.labels(10)
    assert (labels.sum(axis=1) == 1).all() and labels.sum(axis=0).min() > 150


def test_the_vocabulary(runs):
    table = pd.read_parquet(runs / "mine" / "data" / "concepts.parquet")
    assert table["concept"].tolist()[:3] == ["dog", "cat", "bird"] and len(table) == 10
    assert table["frequency"].sum() == TINY["dataset"]["train"] and table["kept"].any()


def test_the_loss(runs):
    trained = json.loads((runs / "train" / "models" / "hashnet" / "config.json").read_text())
    assert trained["method"] == "decorrelated"
    lines = (runs / "train/reports/train/plots/metrics/decorrelation.tsv").read_text().splitlines()
    assert len(lines) == 1 + TINY["train"]["epochs"]


def test_the_baseline(runs):
    found = json.loads((runs / "baselines" / "reports" / "baselines.json").read_text())
    assert 0.2 < found["balanced_lsh"]["map_all_tie_aware"] < 1
    assert found["balanced_lsh"]["map_all_tie_aware"] != found["lsh"]["map_all_tie_aware"]


def test_dvc_yaml_has_the_new_modules(project):
    program = (
        "import sys; from pipeline_dependencies import code_dependencies\n"
        "print(*(f'{stage} {path}' for stage in sys.argv[1:] for path in code_dependencies(stage)), sep='\\n')"
    )
    environment = os.environ | {"PYTHONPATH": str(project / "tests")}
    stages = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    done = subprocess.run([sys.executable, "-c", program, *stages], env=environment, capture_output=True, text=True)
    needed = {tuple(line.split()) for line in done.stdout.splitlines()}
    declared = {(stage, path) for stage, entry in stages.items() for path in entry["deps"]}
    assert len(needed) > 200 and needed <= declared
