"""``python -m stages benchmark`` on a small plan, through the real stages: killed, resumed, searched without labels."""

import io
import json
import os
import re
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from benchmark_run import COUNT, PLAN, assert_same, compare, measured, start, write_plan, write_project
from filelock import FileLock
from stage_runner import ROOT, content

from stages.benchmark import search
from stages.benchmark.cells import Cell
from stages.benchmark.code import digest, files_of, mentions
from stages.benchmark.config import DEFAULT_PLAN, Plan
from stages.benchmark.plan import read_plan
from stages.benchmark.results import REPORTS, RESULTS, read_results
from stages.benchmark.search import Trial, agreement, chosen, cluster_labels, held_out, likely
from stages.benchmark.work import run_all
from stages.codes import pack
from stages.errors import InputError
from stages.images import ImageShards
from stages.progress import silent, track
from stages.train.methods.dsch import Dsch

OTHER = {"methods": ["itq", "uhscm", "dsch", "feature_cosine", "concept_cosine"],
         "search": {**PLAN["search"], "grid": {method: {"train.lr": [0.001, 0.02]} for method in ("uhscm", "dsch")}}}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished comparison; only to be read."""
    directory = tmp_path_factory.mktemp("compared")
    write_project(directory, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setenv("CONCEPTBITS_CACHE", str(tmp_path_factory.mktemp("cache")))
        compare()
    return directory


def test_results_have_a_row_a_measurement(compared, monkeypatch):
    monkeypatch.chdir(compared)
    frame, provenance, extra = read_results()
    found = list(frame[["dataset", "method", "bits", "seed"]].fillna(-1).astype({"bits": int, "seed": int})
                 .itertuples(index=False, name=None))  # fmt: skip
    expected = [("things", method, bits, seed) for method in ("itq", "dsch") for bits in (8, 16) for seed in (0, 1)]
    assert found == [*expected, ("things", "feature_cosine", -1, -1)]
    assert set(frame["guidance"]) == {"images alone"} and frame["splits"].nunique() == 1
    binary = frame[frame["bits"].notna()]
    for ap, mean in zip(binary["query_ap_all"], binary["map_all_tie_aware"], strict=True):
        assert len(ap) == COUNT // 6 and np.mean(ap) == pytest.approx(mean, abs=1e-6)
    assert frame["map_all_stable"].between(0.1, 1).all() and (frame["seconds"] > 0).all()
    assert provenance.stage == "benchmark" and provenance.params["bits"] == [8, 16] and provenance.versions["torch"]
    assert extra["datasets"]["things"]["digest"] and extra["params"]["things"]["train"]["epochs"] == 2
    assert extra["params"]["things"]["dataset"]["path"] == "things.h5"  # not where it was on this machine
    assert not any(str(compared).encode() in file for file in content(compared / REPORTS).values())


def test_search_is_reported_and_used(compared, monkeypatch):
    monkeypatch.chdir(compared)
    frame, _, extra = read_results()
    found = extra["search"]["things"]
    assert (found["criterion"], found["trials"], found["bits"], found["seed"]) == ("clusters", 2, 8, 0)
    assert found["space"] == {"dsch": {"train.lr": [0.001, 0.02]}}
    trials = found["methods"]["dsch"]["trials"]
    assert [trial["settings"] for trial in trials] == [{"train.lr": 0.001}, {"train.lr": 0.02}]
    best = max(trials, key=lambda trial: trial["score"])["settings"]
    assert found["methods"]["dsch"]["chosen"] == best
    used = frame[frame["method"] == "dsch"]["hyperparameters"].map(json.loads)
    assert all(settings == best for settings in used)
    assert all(json.loads(settings) == {} for settings in frame[frame["method"] == "itq"]["hyperparameters"])


def test_reports_are_made(compared):
    files = content(compared / REPORTS)
    assert files.keys() == {"results.parquet", "table.md", "table.tex", "things.png"}
    text = files["table.md"].decode()
    assert "| ITQ | images alone |" in text and "2 trials of each trained method at 8 bits" in text
    assert files["things.png"].startswith(b"\x89PNG") and b'"stage": "benchmark"' in files["things.png"]


def test_second_run_measures_nothing(compared, monkeypatch):
    monkeypatch.chdir(compared)
    monkeypatch.setattr(Cell, "run", lambda self: pytest.fail(str(self)))
    monkeypatch.setattr(Trial, "run", lambda self: pytest.fail(str(self)))
    before = content(compared / REPORTS)
    compare()
    assert content(compared / REPORTS) == before


@pytest.mark.slow
def test_only_what_is_missing_is_measured(compared, tmp_path, monkeypatch):
    write_project(tmp_path / "work", {"seeds": [0]})
    monkeypatch.chdir(tmp_path / "work")
    compare()
    done = []
    run = Cell.run
    monkeypatch.setattr(Cell, "run", lambda self: (done.append(str(self)), run(self)))
    monkeypatch.setattr(Trial, "run", lambda self: pytest.fail(str(self)))
    write_plan(Path(), {})
    compare()
    assert done == [f"things, {method}, {bits} bits, seed 1" for method in ("itq", "dsch") for bits in (8, 16)]
    assert_same(measured(), measured(compared))


@pytest.mark.slow
def test_stopped_and_resumed_is_the_same(compared, tmp_path, monkeypatch):
    write_project(tmp_path / "work", {})
    monkeypatch.chdir(tmp_path / "work")
    inner, epochs = Dsch.begin_epoch, []

    def interrupted(self, epoch, all_codes):
        """In the second epoch of the second measurement, after two trials."""
        epochs.append(epoch)
        if epochs[4:] == [0, 1, 0, 1]:
            raise KeyboardInterrupt
        inner(self, epoch, all_codes)

    monkeypatch.setattr(Dsch, "begin_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare()
    assert not RESULTS.exists() and list(Path().glob(".resume/benchmark/*/cells/dsch-*/.resume/train-*/checkpoint.pt"))
    del epochs[:]
    compare()
    assert epochs[0] == 1  # it went on at its checkpoint
    assert_same(measured(), measured(compared))
    assert not list(Path(".resume/benchmark").glob("*/cells/*"))


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "number"), [
    (1, signal.SIGKILL), pytest.param(2, signal.SIGKILL, marks=pytest.mark.nightly),
    pytest.param(2, signal.SIGINT, marks=pytest.mark.nightly),
])  # fmt: skip
def test_ended_from_outside_and_resumed_is_the_same(workers, number, compared, tmp_path):
    """By the kernel or by Ctrl-C in the middle, with any number of processes."""
    work = tmp_path / "work"
    write_project(work, {})
    process = start(work, workers)
    while len(list(work.glob(".resume/benchmark/things-*/results/*"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, number)
    stderr = process.communicate(timeout=100)[1]
    if number == signal.SIGINT:
        assert (process.returncode, stderr) == (130, "error: interrupted; the same command resumes\n")
    assert not (work / RESULTS).exists()
    process = start(work, workers)
    stderr = process.communicate(timeout=300)[1]
    assert (process.returncode, stderr) == (0, "")
    assert_same(measured(work), measured(compared))
    assert not list(work.glob(".resume/benchmark/*/cells/*"))


def test_what_another_process_has_begun_is_waited_for(tmp_path):
    """Workers whose parent was killed finish; the next run neither disturbs them nor does their work again."""

    class Begun:
        work, file = tmp_path / "cells" / "one", tmp_path / "one.parquet"

        def run(self) -> None:
            pytest.fail("it was done already")

        def __str__(self) -> str:
            return "one"

    done: list[str] = []
    (tmp_path / "locks").mkdir()
    with FileLock(tmp_path / "locks" / "one.lock"):
        thread = threading.Thread(target=lambda: done.extend(run_all([Begun()])))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        Begun.file.touch()
    thread.join(20)
    assert done == ["one"]


def test_second_benchmark_beside_the_first_is_refused(compared, monkeypatch):
    monkeypatch.chdir(compared)
    with FileLock(".resume/benchmark/lock"), pytest.raises(InputError, match="another benchmark is at work"):
        compare()


# ---- data sets with and without concepts


@pytest.mark.slow
def test_concepts_make_the_criterion_and_are_graded(tmp_path, monkeypatch):
    write_project(tmp_path / "work", {**OTHER, "seeds": [0], "bits": [8], "variants": [
        {"name": "uhscm, no contrast", "method": "uhscm", "params": {"train.uhscm.alpha": 0.0}},
    ]}, text=True)  # fmt: skip
    monkeypatch.chdir(tmp_path / "work")
    compare()
    frame, _, extra = read_results()
    assert extra["search"]["things"]["criterion"] == "concepts"
    assert list(frame["method"]) == ["itq", "uhscm", "dsch", "uhscm, no contrast", "feature_cosine", "concept_cosine"]
    grades = dict(zip(frame["method"], frame["guidance"], strict=True))
    assert grades["uhscm"] == grades["uhscm, no contrast"] == grades["concept_cosine"] == "general vocabulary"
    assert grades["itq"] == grades["dsch"] == grades["feature_cosine"] == "images alone"
    settings = dict(zip(frame["method"], frame["hyperparameters"].map(json.loads), strict=True))
    assert settings["uhscm, no contrast"] == {**settings["uhscm"], "train.uhscm.alpha": 0.0}


def test_what_needs_concepts_is_left_out_where_there_are_none(tmp_path, monkeypatch, capsys):
    methods = ["itq", "uhscm", "dsch", "fused", "feature_cosine", "concept_cosine"]
    write_project(tmp_path / "work", {"methods": methods, "seeds": [0], "bits": [8], "search": None})
    monkeypatch.chdir(tmp_path / "work")
    compare()
    frame, _, extra = read_results()
    assert list(frame["method"]) == ["itq", "dsch", "fused", "feature_cosine"] and extra["search"] == {}
    assert set(frame["guidance"]) == {"images alone"}
    said = capsys.readouterr().out
    assert "without uhscm" in said and "things has no text side" in said
    assert "No search" in (REPORTS / "table.md").read_text()


# ---- the search reads no label


@pytest.mark.slow
@pytest.mark.parametrize("text", [False, True])
def test_poisoned_labels_change_no_choice(text, tmp_path, monkeypatch):
    """Labels without any sense give the same scores, and nothing of them lies where the trials are trained."""
    found = []
    for name in ("good", "poisoned"):
        write_project(tmp_path / name, {**(OTHER if text else {}), "seeds": [0], "bits": [8]}, text=text,
                      poisoned=name == "poisoned")  # fmt: skip
        monkeypatch.chdir(tmp_path / name)
        compare()
        frame, _, extra = read_results()
        found.append((extra["search"]["things"]["methods"], float(frame["map_all_tie_aware"].max())))
        (directory,) = Path(".resume/benchmark").glob("things-*/search")
        shards = ImageShards(directory / "data/images")
        assert len(shards.ids("train")) == COUNT * 5 // 6 * 4 // 5 and not shards.labels(6).any()
        assert len(pq.read_table(directory / "data/concept_distribution.parquet")) == COUNT * 5 // 6 * 4 // 5
    assert found[0][0] == found[1][0]
    assert found[0][1] > found[1][1] + 0.2  # they were poisoned indeed


def test_trial_reads_no_label(tmp_path, monkeypatch):
    """Not even by a detour: reading labels anywhere during the search is an error here."""
    write_project(tmp_path / "work", {"seeds": [0], "bits": [8]})
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(ImageShards, "labels", lambda *_: pytest.fail("labels were read"))
    monkeypatch.setattr(Cell, "run", lambda self: (_ for _ in ()).throw(InputError("the search is over")))
    with pytest.raises(InputError, match="the search is over"):
        compare()


def test_agreement_by_hand():
    """Five images, the first held out; distances 1, 0, 2, 2 to the others, of which the first and third are alike."""
    codes = pack(np.array([[1] * 8, [-1] + [1] * 7, [1] * 8, [-1, -1] + [1] * 6, [1] * 6 + [-1, -1]]))
    alike = np.array([[1, 0], [1, 0], [0, 1], [1, 0], [0, 1]], bool)
    # In order: no, yes, then a tie of two with one hit: at rank 3 or 4.
    expected = ((1 / 2 + 2 / 3) / 2 + (1 / 2 + 2 / 4) / 2) / 2
    assert list(held_out(5)) == [True, False, False, False, False]
    assert agreement(codes, [alike]) == pytest.approx(expected)
    all_alike = np.ones((5, 1), bool)
    assert agreement(codes, [alike, all_alike]) == pytest.approx((expected + 1) / 2)


def test_likely_labels():
    rows = np.array([[0.5, 0.45, 0.05], [0.09, 0.9, 0.01], [0.05, 0.03, 0.02]])
    assert likely(rows).tolist() == [[True, True, False], [False, True, False], [True, False, False]]


def test_clusters_are_those_of_the_features():
    labels = np.random.default_rng(0).integers(0, 3, 60)
    features = np.eye(3)[labels] + 0.01 * np.random.default_rng(1).standard_normal((60, 3))
    found = cluster_labels(features, 3, seed=0)
    assert found.shape == (60, 3) and (found.sum(axis=1) == 1).all()
    assert ((found @ found.T) == (labels[:, None] == labels)).all()
    assert cluster_labels(features[:2], 5, seed=0).shape == (2, 2)


class Scored:
    """A finished trial."""

    def __init__(self, directory: Path, method: str, score: float | None, **settings: float) -> None:
        self.method, self.file = method, directory / f"{method}-{len(list(directory.iterdir()))}.json"
        found = {"method": method, "settings": settings, "score": score, "failed": "train.lr: the loss is nan"}
        self.file.write_text(json.dumps(found))


def test_best_score_is_chosen_and_the_first_of_equal_ones(tmp_path):
    trials = [Scored(tmp_path, "a", 0.5, lr=1), Scored(tmp_path, "a", 0.7, lr=2), Scored(tmp_path, "a", 0.7, lr=3),
              Scored(tmp_path, "b", None, lr=1), Scored(tmp_path, "b", 0.1, lr=2)]  # fmt: skip
    found = chosen(trials)
    assert found["a"]["chosen"] == {"lr": 2} and found["b"]["chosen"] == {"lr": 2}
    assert [trial["score"] for trial in found["a"]["trials"]] == [0.5, 0.7, 0.7]
    with pytest.raises(InputError, match=r"search.grid.c: every trial failed: train.lr: the loss is nan"):
        chosen([Scored(tmp_path, "c", None, lr=1)])


def test_training_that_fails_has_no_score(tmp_path, monkeypatch):
    write_project(tmp_path / "work", {"seeds": [0], "bits": [8]})
    monkeypatch.chdir(tmp_path / "work")
    inner = search.train.run

    def fail(params):
        if params.train.lr > 0.01:
            raise InputError("train.lr: the loss is nan in epoch 1")
        inner(params)

    monkeypatch.setattr(search.train, "run", fail)
    compare()
    trials = read_results()[2]["search"]["things"]["methods"]["dsch"]["trials"]
    assert trials[0]["score"] > 0 and trials[1]["score"] is None and "nan" in trials[1]["failed"]
    assert "| dsch | lr 0.02 | failed |  |" in (REPORTS / "table.md").read_text()


# ---- what a result depends on


def test_code_is_followed_and_only_as_far_as_it_matters():
    common = files_of(["stages.train.stage"], ["stages.train.methods.registry"])
    names = {file.name for file in common}
    assert {"stage.py", "trainer.py", "hashnet.py", "objective.py"} <= names
    assert not {"uhscm.py", "dsch.py", "registry.py", "config.py", "params.py"} & names
    own = files_of(["stages.train.methods.uhscm"])
    assert {"uhscm.py", "losses.py", "matrix.py"} <= {file.name for file in own} and not mentions(own, "dsch")
    fused = files_of(["stages.train.methods.fused"])
    assert {"codebook.py", "semantics.py"} <= {file.name for file in fused} and not mentions(fused, "uhscm")
    assert digest(fused) != digest(own)


@pytest.mark.slow
def test_change_of_one_methods_parameters_leaves_the_others_results(compared, tmp_path, monkeypatch):
    """And one that a method does read measures it again."""
    write_project(tmp_path / "work", {"seeds": [0], "bits": [8], "search": None})
    monkeypatch.chdir(tmp_path / "work")
    compare()
    done = []
    monkeypatch.setattr(Cell, "run", lambda self: done.append(self.row.name))
    for changes, again in (({"uhscm": {"alpha": 0.7}}, []), ({"dsch": {"temperature": 0.77}}, ["dsch"])):
        write_plan(Path(), {"seeds": [0], "bits": [8], "search": None,
                            "datasets": [{"name": "things", "params": {"train": changes}}]})  # fmt: skip
        done.clear()
        if again:
            with pytest.raises(FileNotFoundError):  # nothing was measured here
                compare()
        else:
            compare()
        assert done == again


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_no_bars_within_a_bar(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    with silent():
        assert list(track([1, 2], "inner")) == [1, 2]
    assert sys.stderr.getvalue() == ""
    assert list(track([1, 2], "outer")) == [1, 2]
    assert "outer" in sys.stderr.getvalue()


# ---- plans


@pytest.mark.parametrize("path", sorted((ROOT / "stages/benchmark/plans").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_plans_of_the_project_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan, params = read_plan(path)
    assert params.keys() == {dataset.name for dataset in plan.datasets}


def problem(directory: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> str:
    write_project(directory, changes)
    monkeypatch.chdir(directory)
    with pytest.raises(InputError) as caught:
        read_plan(Path("plan.yaml"))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("plan.yaml: ")
    return str(caught.value).removeprefix("plan.yaml: ")


@pytest.mark.parametrize(("changes", "words"), [
    ({"seed": [0]}, "unknown key 'seed'; did you mean 'seeds'?"),
    ({"methods": ["itk"]}, "methods: unknown key 'itk'; did you mean 'itq'?"),
    ({"methods": ["itq", "itq"]}, "methods: ['itq', 'itq'] is not allowed: has 'itq' twice"),
    ({"methods": []}, "methods: [] is not allowed: tuple should have at least 1 item"),
    ({"bits": [12]}, "bits.0: 12 is not allowed: must be a positive multiple of 8"),
    ({"bits": 16}, "bits: 16 is not allowed: input should be a valid tuple"),
    ({"metrics": ["map"]}, "metrics.0: 'map' is not allowed"),
    ({"datasets": [{"nam": "things"}]}, "key 'datasets.0.name' is missing; add it"),
    ({"datasets": [{"name": "things", "parms": {}}]}, "unknown key 'datasets.0.parms'; did you mean 'params'?"),
    ({"datasets": [{"name": "things", "params": {"trian": {}}}]}, "things: unknown key 'trian'; did you mean 'train'?"),
    ({"datasets": [{"name": "things", "params": {"train": {"lr": -1.0}}}]}, "things: train.lr: -1.0 is not allowed"),
    ({"datasets": [{"name": "things", "params": {"bits": 8}}]}, "things: bits is varied for every data set alike"),
    ({"variants": [{"name": "itq", "method": "dsch", "params": {}}]}, "variants: 'itq' is the name of a method"),
    ({"variants": [{"name": "x", "method": "dsch", "params": {"concepts.tau": 1}}]}, "variants.0.params.concepts.tau"),
    ({"variants": [{"name": "x", "method": "dsch", "params": {"train.lrr": 1}}]}, "things: unknown key 'train.lrr'"),
    ({"search": {**PLAN["search"], "grid": {"dsch": {"train.lr": [0.1, -0.1]}}}}, "things: train.lr: -0.1 is not"),
    ({"search": {**PLAN["search"], "grid": {"uhscm": {"train.lr": [0.1]}}}}, "search.grid: has no values for dsch"),
    ({"search": {**PLAN["search"], "grid": {"dsch": {"train.lr": [0.1]}, "uhscm": {"train.lr": [0.1, 0.2]}}}},
     "search: every method needs the same number of trials, there are: dsch 1, uhscm 2"),
    ({"search": {**PLAN["search"], "grid": {"dsch": {"train.lr": []}}}}, "every method needs the same number of"),
    ({"search": {**PLAN["search"], "criterion": "labels"}}, "search.criterion: 'labels' is not allowed"),
    ({"search": {"criterion": "auto", "bits": 8}}, "key 'search.seed' is missing"),
])  # fmt: skip
def test_bad_plans_are_told_in_one_line(changes, words, tmp_path, monkeypatch):
    assert words in problem(tmp_path / "work", monkeypatch, **changes)


def test_default_plan_is_valid_and_gives_every_method_as_many_trials(monkeypatch):
    monkeypatch.chdir(ROOT)
    plan, params = read_plan(DEFAULT_PLAN)
    assert params.keys() == {"scenes"}
    assert {len(plan.search.combinations(method)) for method in plan.search.grid} == {plan.search.trials}


def test_plan_of_the_docs_is_valid(tmp_path, monkeypatch):
    """It shows every key of a plan; data sets that are not here are not looked for."""
    text = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    block = re.search(r"^## The plan\n\n((?:    .*\n)+)", text, re.MULTILINE)[1]
    monkeypatch.chdir(ROOT)
    (tmp_path / "plan.yaml").write_text(textwrap.dedent(block), encoding="utf-8")
    plan, params = read_plan(tmp_path / "plan.yaml")
    assert plan.model_fields_set == set(Plan.model_fields) and params.keys() == {"scenes", "photographs"}


def test_unknown_metric_and_unlabelled_data_are_refused(tmp_path, monkeypatch):
    write_project(tmp_path / "work", {"metrics": ["map_at_77"], "methods": ["itq"], "search": None})
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(InputError, match="metrics: no data set of the plan reports map_at_77; there are map_all, "):
        compare()
    with h5py.File("things.h5", "a") as file:
        del file["labels"]
    write_plan(Path(), {"datasets": [{"name": "mute"}], "methods": ["itq"], "search": None})
    with pytest.raises(InputError, match="mute: the data set has no labels"):
        compare()
