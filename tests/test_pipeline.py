"""The whole pipeline, by real DVC in a clone of the working tree, on a tiny ``scenes``; and on other kinds of data."""

import csv
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dvc_project import Project, stages_run
from picture import picture
from stage_runner import ROOT, TINY, StageRunner, outputs, prepare, write_params

from stages.__main__ import STAGES
from stages.evaluate.reports import NO_LABELS
from stages.images import ImageShards, read_dataset

pytestmark = pytest.mark.slow

SHARED = ROOT.parent / "shared"
#: What changing the code length or the method leaves to be done.
AFTER_BITS = ["train", "encode", "index", "map", "baselines", "evaluate", "explain", "report"]
AFTER_METHOD = ["train", "encode", "index", "map", "evaluate", "explain", "report"]


def in_git() -> set[str]:
    """The outputs that a commit shows."""
    return {path for stage in STAGES for path in outputs(stage) if path.endswith((".json", ".csv", ".md"))} - {
        "data/dataset.json", "data/splits.json", "reports/near_duplicates.csv", "reports/skipped.csv",
    }  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project after ``dvc repro``, committed."""
    project = Project(tmp_path_factory.mktemp("clone"))
    assert stages_run(project.dvc("repro")) == list(STAGES)
    assert project.changed() == {"dvc.lock", *in_git()}
    project.commit()
    yield project


@pytest.fixture
def fresh(project: Project) -> Project:
    """The project as committed."""
    project.reset()
    assert project.changed() == set()
    return project


def test_everything_is_made(fresh):
    for stage in STAGES:
        for path in outputs(stage):
            assert (fresh.directory / path).exists(), path
    metrics = json.loads((fresh.directory / "reports/metrics.json").read_text())
    assert 0 < metrics["map_all_stable"] <= 1
    assert not (fresh.directory / ".resume").exists() or not any((fresh.directory / ".resume").iterdir())


def test_second_repro_does_nothing(fresh):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = fresh.dvc("repro")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert stages_run(said) == [] and said.count("didn't change, skipping") == len(STAGES)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5  # seconds of a processor
    assert fresh.changed() == set()


def test_other_code_length_and_back(fresh):
    before = fresh.locked()
    assert fresh.experiment("bits=16") == (AFTER_BITS, [])
    assert fresh.changed() == {"dvc.lock", "params.yaml", *in_git()}
    report = json.loads((fresh.directory / "reports/metrics.json").read_text())
    assert report["run"][0]["params"]["bits"] == 16
    # Back again: what is expensive comes from the run cache, only the small reports that lie in git are made anew.
    made_anew = ["baselines", "evaluate", "explain", "report"]
    assert fresh.experiment("bits=32") == (made_anew, ["train", "encode", "index", "map"])
    assert fresh.changed() <= {"params.yaml", "dvc.lock"}  # where DVC writes "null" as nothing
    assert fresh.locked() == before


@pytest.mark.parametrize("method", ["uhscm", "dsch"])
def test_other_method(fresh, method):
    assert fresh.experiment(f"method={method}") == (AFTER_METHOD, [])
    assert json.loads((fresh.directory / "models/hashnet/config.json").read_text())["method"] == method


def test_change_of_a_section_begins_at_its_stage(fresh):
    said = fresh.dvc("repro", "--dry", "mine")
    assert stages_run(said) == []
    write_params(fresh.directory, TINY, {"concepts": {"tau": 2.0}})
    assert stages_run(fresh.dvc("repro", "--dry"))[:1] == ["mine"]
    write_params(fresh.directory, TINY, {"concepts": {"vocabulary": "stages/mine/vocabularies/nuswide81.txt"}})
    assert stages_run(fresh.dvc("repro", "--dry"))[:1] == ["mine"]


def test_queue_of_experiments_then_tables_and_plots(fresh):
    fresh.dvc("exp", "run", "--queue", "-S", "bits=8,16")
    assert fresh.changed() == set()
    assert fresh.run_queue(2) == ["Success", "Success"]
    assert fresh.changed() == set()  # they ran in copies

    table = list(csv.DictReader(fresh.dvc("exp", "show", "--csv", "--only-changed").splitlines()))
    named = {row["Experiment"]: row for row in table if row["State"] == "Success"}
    assert sorted(int(row["bits"]) for row in named.values()) == [8, 16]
    for row in named.values():
        assert 0 < float(row["map_all_stable"]) <= 1
    metrics = table[0].keys() - {"Experiment", "rev", "typ", "Created", "parent", "State", "Executor"}
    assert {"map_all_stable", "map_all_tie_aware", "precision_at_10"} <= metrics
    # Columns that a person can read: the metrics, what was changed, and no path through nested sections.
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*|(data|models|reports|stages)/\S+", name) for name in metrics)

    first, second = named
    shown = json.loads(fresh.dvc("plots", "diff", "--json", first, second))["data"]
    assert shown.keys() == {"Training losses", "Precision-recall over Hamming radii", "Precision at N"}
    axes = (("step", "loss"), ("recall", "precision"), ("n", "precision"))
    for (plot,), columns in zip(shown.values(), axes, strict=True):
        points = plot["content"]["data"]["values"]
        assert {point["rev"] for point in points} == {first, second}
        assert all(float(point[column]) >= 0 for point in points for column in columns)
    fresh.dvc("plots", "show", "--out", "dvc_plots")
    page = (fresh.directory / "dvc_plots" / "index.html").read_text(encoding="utf-8")
    assert all(title in page for title in shown)
    assert fresh.changed() == set()


# ---- faults under DVC (of a stage alone: faults.py)


def test_damage_that_dvc_does_not_see(fresh):
    """A bit that flips without a change of the file's time and size."""
    verify = (sys.executable, "-m", "stages", "verify")
    made = {path for stage in STAGES for path in outputs(stage)}
    assert fresh.run(*verify) == f"{len(made)} artifacts as noted in dvc.lock\n"
    codes = fresh.directory / "data/codes.h5"
    before, times = codes.read_bytes(), codes.stat()
    codes.chmod(0o644)
    codes.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    os.utime(codes, ns=(times.st_atime_ns, times.st_mtime_ns))
    said = subprocess.run([*verify, "data"], cwd=fresh.directory, env=fresh.environment, capture_output=True, text=True)
    assert said.returncode == 2 and said.stderr == (
        "error: data/codes.h5: its content is not what dvc.lock notes; delete it and run `dvc repro encode`\n"
    )
    codes.unlink()
    fresh.dvc("repro", "--single-item", "encode")
    assert codes.read_bytes() == before


def undisturbed(project: Project, *changes: dict) -> dict[str, str]:
    """The digests of a run with other parameters; it leaves nothing that DVC could take the outputs from."""
    write_params(project.directory, TINY, *changes)
    project.dvc("repro")
    found = project.locked()
    project.reset()
    shutil.rmtree(project.directory / ".dvc/cache/runs")
    write_params(project.directory, TINY, *changes)
    return found


def started(project: Project) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "dvc", "repro"], cwd=project.directory, env=project.environment,
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


@pytest.mark.nightly
def test_two_repro_at_once(fresh):
    expected = undisturbed(fresh, {"seed": 5})
    both = [started(fresh), started(fresh)]
    ends = [(process.communicate(timeout=300)[0], process.returncode) for process in both]
    assert 0 in {code for _, code in ends}
    for said, code in ends:
        assert code == 0 or "lock" in said or "is busy" in said, said
    fresh.dvc("repro")
    assert fresh.locked() == expected
    fresh.run(sys.executable, "-m", "stages", "verify")


@pytest.mark.nightly
def test_parameter_changed_in_the_middle(fresh):
    """DVC would note the network of the old rate as that of the new one."""
    new = {"train": {"lr": 0.02}}
    expected = undisturbed(fresh, new)
    write_params(fresh.directory, TINY, {"train": {"lr": 0.01, "epochs": 20}})
    process = started(fresh)
    while not list(fresh.directory.glob(".resume/train-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    write_params(fresh.directory, TINY, new)
    said = process.communicate(timeout=300)[0]
    assert process.returncode and "params.yaml: changed while train ran; repeat the command" in said, said
    fresh.dvc("repro")
    assert fresh.locked() == expected


# ---- other kinds of data


def run_all(run_stages: StageRunner, directory: Path) -> dict[str, str]:
    """Run every stage; what each said on standard output."""
    said = {}
    for stage in STAGES:
        result = run_stages(directory, stage).check()
        assert result.stderr == ""
        said[stage] = result.stdout
    for stage in STAGES:
        for path in outputs(stage):
            assert (directory / path).exists(), path
    return said


def test_images_without_labels(tmp_path, run_stages, monkeypatch):
    """A flat directory of photographs: all is done but what needs labels."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(60):
        (photos / f"{number}.png").write_bytes(picture(number, size=40))
    changes = {"dataset": {"name": "imagefolder", "path": str(photos), "queries": 10, "database": 50, "train": 40}}
    said = run_all(run_stages, prepare(tmp_path / "run", changes, {"components": {"fine": 8}}))
    assert {stage for stage, text in said.items() if text} == {"baselines", "evaluate", "explain"}
    assert NO_LABELS in said["evaluate"] and NO_LABELS in said["baselines"]
    monkeypatch.chdir(tmp_path / "run")
    assert not read_dataset().has_labels
    metrics = json.loads(Path("reports/metrics.json").read_text())
    assert metrics["labels"] is False and NO_LABELS in metrics["note"] and "distinct_codes" in metrics
    assert not any(name.startswith(("map", "precision")) for name in metrics)


@pytest.mark.skipif(not (SHARED / "data" / "clothing").is_dir(), reason="needs the shared photographs")
def test_photographs_in_parquet(tmp_path, run_stages, monkeypatch):
    files = sorted((SHARED / "data" / "clothing").rglob("*.parquet"))
    part = next(pq.ParquetFile(files[0]).iter_batches(batch_size=200))
    pq.write_table(pa.Table.from_batches([part]), tmp_path / "photos.parquet")
    changes = {"dataset": {"name": "parquet", "path": str(tmp_path / "photos.parquet"), "protocol": "holdout",
               "queries": 20, "database": 100, "train": 60}}  # fmt: skip
    said = run_all(run_stages, prepare(tmp_path / "run", changes))
    assert set(said.values()) == {""}
    monkeypatch.chdir(tmp_path / "run")
    assert len(ImageShards().ids("query")) == 20 and read_dataset().has_labels
    assert json.loads(Path("reports/metrics.json").read_text())["queries"] == 20
