"""The comparison as a queue of experiments, by real DVC in a clone of the working tree, on a tiny ``scenes``."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmark_run import PLAN
from dvc_project import Project
from stage_runner import ROOT

from stages.benchmark import dvc_queue
from stages.benchmark.config import Plan
from stages.benchmark.results import REPORTS, RESULTS, read_results
from stages.errors import InputError, OutsideError
from stages.params import merged, parse

TINY: dict[str, Any] = {
    "datasets": [{"name": "scenes"}], "methods": ["itq", "dsch", "feature_cosine", "concept_cosine"], "bits": [8, 16],
    "seeds": [1], "metrics": ["map_all"], "search": None,
}  # fmt: skip
BASE = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
PROGRAM = """
import sys
from pathlib import Path
from stages.__main__ import one_line_errors
from stages.benchmark.stage import run
with one_line_errors():
    run(Path(sys.argv[1]), 1, queue=sys.argv[2] == "queue", collected=sys.argv[2] == "collect")
"""


def plan_of(**changes: Any) -> Plan:
    return parse(Plan, {**PLAN, **TINY, **changes})


def test_commands_are_one_a_trained_row():
    variants = [{"name": "plain", "method": "uhscm", "params": {"train.uhscm.alpha": 0.0, "train.optimizer": "sgd"}}]
    plan = plan_of(methods=["itq", "dsch", "fused"], seeds=[0, 1], variants=variants)
    common = ["-S", "bits=8,16", "-S", "seed=0,1"]
    assert dvc_queue.commands(plan) == [
        ["dvc", "exp", "run", "--queue", "-S", "method=dsch", *common],
        ["dvc", "exp", "run", "--queue", "-S", "method=fused", *common],
        ["dvc", "exp", "run", "--queue", "-S", "method=uhscm", *common, "-S", "train.uhscm.alpha=0.0", "-S",
         'train.optimizer="sgd"'],
    ]  # fmt: skip
    with pytest.raises(InputError, match="nothing to queue"):
        dvc_queue.enqueue(plan_of(methods=["itq"]))


def shown(**runs: dict[str, Any]) -> str:
    """What ``dvc exp show --json`` says of experiments, by their revision; one without metrics is still running."""
    experiments = [{
        "name": rev, "executor": {"state": "success" if run.get("metrics") else "running"},
        "revs": [{"rev": rev, "data": {
            "params": {"params.yaml": {"data": run["params"]}},
            "metrics": {"reports/metrics.json": {"data": run["metrics"]}} if run.get("metrics") else {},
        }}],
    } for rev, run in runs.items()]  # fmt: skip
    failed = {"name": "failed", "revs": [{"rev": "f", "data": None, "error": {"msg": "bad"}}]}
    commit = {"rev": "abc", "experiments": [*experiments, failed]}
    return json.dumps([{"rev": "workspace", "experiments": None}, commit])


def said_by(answers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give these answers, by a word of the command."""
    def answer(command: list[str]) -> str:
        return next(text for word, text in answers.items() if word in " ".join(command))

    monkeypatch.setattr(dvc_queue, "_run", answer)


def finished(method: str, bits: int, score: float, **train: Any) -> dict[str, Any]:
    metrics = {"map_all_stable": score, "map_all_tie_aware": score, "guidance": "images alone", "protocol": "p",
               "splits": "s", "concepts_overlapping_labels": 2, "queries": 5, "dead_bits": 0}  # fmt: skip
    params = merged(BASE, {"method": method, "bits": bits, "seed": 1, "train": {"dsch": train}})
    return {"params": params, "metrics": metrics}


def test_collects_what_is_finished_and_belongs_to_the_plan(monkeypatch):
    baselines = {"itq": {"map_all_stable": 0.3, "map_all_tie_aware": 0.31, "protocol": "p", "splits": "s"},
                 "feature_cosine": {"map_all_stable": 0.7, "protocol": "p", "splits": "s"}}  # fmt: skip
    runs = {"a": finished("dsch", 8, 0.5, fine=0.0), "b": finished("dsch", 8, 0.9, temperature=0.9),
            "c": finished("dsch", 32, 0.9), "d": finished("dsch", 8, 0.4)}  # fmt: skip
    said_by({"exp show": shown(**runs), "git show": json.dumps(baselines)}, monkeypatch)
    monkeypatch.chdir(ROOT)  # whose params.yaml it is compared with
    plan = plan_of(bits=[8], variants=[{"name": "coarse", "method": "dsch", "params": {"train.dsch.fine": 0.0}}])
    table, _ = dvc_queue.collect(plan)
    frame = table.to_pandas()
    assert list(frame["method"]) == ["itq", "dsch", "coarse", "feature_cosine"]  # no concepts, so no cosine of them
    assert list(frame["map_all_stable"]) == [0.3, 0.4, 0.5, 0.7]
    assert list(frame["bits"].fillna(0)) == [8, 8, 8, 0] and "queries" not in frame
    assert json.loads(frame["hyperparameters"][2]) == {"train.dsch.fine": 0.0}
    with pytest.raises(InputError, match=r"1 experiments .* the first: dsch at 16 bits with seed 1; queue"):
        dvc_queue.collect(plan_of(bits=[8, 16], methods=["dsch"]))


def test_failing_command_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutsideError, match="git show nothing: fatal: ") as caught:
        dvc_queue._run(["git", "show", "nothing"])
    assert "\n" not in str(caught.value)
    with pytest.raises(OutsideError, match="no-such-program: not found"):
        dvc_queue._run(["no-such-program"])


@pytest.fixture(scope="module")
def queued(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Path]]:
    """A project after ``dvc repro`` with the plan in its queue."""
    directory = tmp_path_factory.mktemp("clone")
    project, plan = Project(directory), directory / "plan.yaml"
    plan.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    project.dvc("repro")
    project.commit()
    said = project.run(sys.executable, "-c", PROGRAM, str(plan), "queue")
    assert said.splitlines()[0] == "dvc exp run --queue -S method=dsch -S bits=8,16 -S seed=1"
    yield project, plan
    project.dvc("queue", "stop", "--kill")


@pytest.mark.slow
def test_queue_is_run_and_collected(queued, monkeypatch):
    project, plan = queued
    before = subprocess.run([sys.executable, "-c", PROGRAM, str(plan), "collect"], cwd=project.directory,
                            env=project.environment, capture_output=True, text=True)  # fmt: skip
    assert before.returncode == 2 and "not finished at this commit" in before.stderr
    assert before.stderr.count("\n") == 1 and not (project.directory / RESULTS).exists()
    assert project.run_queue(2) == ["Success", "Success"]
    project.run(sys.executable, "-c", PROGRAM, str(plan), "collect")
    monkeypatch.chdir(project.directory)
    frame, provenance, _ = read_results()
    assert list(frame["method"]) == ["itq", "itq", "dsch", "dsch", "feature_cosine", "concept_cosine"]
    assert list(frame["bits"][:4]) == [8, 16, 8, 16] and frame["map_all_stable"].between(0.05, 1).all()
    assert list(frame["guidance"]) == ["images alone"] * 5 + ["the data set's own names"]
    assert provenance.versions["dvc"] and "query_ap_all" not in frame
    runs = json.loads(project.dvc("exp", "show", "--json"))[1]["experiments"]
    scores = {run["revs"][0]["data"]["metrics"]["reports/metrics.json"]["data"]["map_all_stable"] for run in runs}
    assert scores == set(frame["map_all_stable"][2:4])
    text = (REPORTS / "table.md").read_text()
    assert "| dsch | images alone |" in text and (REPORTS / "scenes.png").exists()
