"""``python -m stages compare`` on a small repository with two commits and an experiment."""

import json
import os
import subprocess

import pytest
from stage_runner import write_params

from stages.compare import compare
from stages.errors import InputError

RUN = {"map_all_stable": 0.5, "map_all_tie_aware": 0.5, "dead_bits": 2, "protocol": "scenes", "splits": "5" * 16}


@pytest.fixture
def repository(workplace, monkeypatch):
    """The current directory: a repository whose first commit has 32 bits, and its second 64."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git(workplace, "init", "--quiet", "--initial-branch", "main")
    git(workplace, "config", "user.name", "test")
    git(workplace, "config", "user.email", "test@localhost")
    write_run(workplace, {"bits": 32}, {})
    commit(workplace, "short")
    git(workplace, "tag", "short")
    write_run(workplace, {"bits": 64, "train": {"epochs": 9}}, {"map_all_tie_aware": 0.75, "dead_bits": 0})
    commit(workplace, "long")
    return workplace


def git(directory, *arguments):
    result = subprocess.run(["git", *arguments], cwd=directory, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def commit(directory, message):
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message", message)


def write_run(directory, params, metrics, baseline=0.25):
    write_params(directory, params)
    (directory / "reports").mkdir(exist_ok=True)
    (directory / "reports/metrics.json").write_text(json.dumps(RUN | metrics | {"run": [{"stage": "evaluate"}]}))
    itq = {"map_all_stable": 0.2, "map_all_tie_aware": baseline, "precision_at_1": 0.9}
    reference = {"map_all_stable": 0.8}
    (directory / "reports/baselines.json").write_text(json.dumps({"itq": itq, "feature_cosine": reference, "run": []}))


def compared(capsys, *revisions):
    compare(*revisions, True, False)
    return json.loads(capsys.readouterr().out)


def test_two_commits(repository, capsys):
    found = compared(capsys, "short", "HEAD")
    assert found["runs"] == ["short", "HEAD"] and found["notes"] == []
    assert found["params"] == {"bits": [32, 64], "train.epochs": [60, 9]}
    assert found["metrics"]["map_all_tie_aware"] == {"first": 0.5, "second": 0.75, "difference": 0.25}
    assert found["metrics"]["dead_bits"]["difference"] == -2
    assert found["metrics"]["protocol"] == {"first": "scenes", "second": "scenes", "difference": None}
    assert "run" not in found["metrics"]
    assert found["baselines"]["itq"]["map_all_tie_aware"]["difference"] == 0


def test_workspace(repository, capsys):
    write_run(repository, {"bits": 16}, {"map_all_tie_aware": 0.25})
    found = compared(capsys, "HEAD", "workspace")
    assert found["params"] == {"bits": [64, 16], "train.epochs": [9, 60]}
    assert found["metrics"]["map_all_tie_aware"]["difference"] == -0.5


def test_experiment_by_its_name(repository, capsys):
    base = git(repository, "rev-parse", "HEAD")
    write_run(repository, {"bits": 8}, {})
    commit(repository, "experiment")
    made = git(repository, "rev-parse", "HEAD")
    git(repository, "update-ref", f"refs/exps/{base[:2]}/{base[2:]}/tidy-name", made)
    git(repository, "reset", "--quiet", "--hard", base)
    assert compared(capsys, "HEAD", "tidy-name")["params"]["bits"] == [64, 8]
    git(repository, "update-ref", f"refs/exps/{made[:2]}/{made[2:]}/tidy-name", base)
    with pytest.raises(InputError, match=r"^tidy-name: 2 experiments have this name; take the commit"):
        compare("HEAD", "tidy-name", True, False)


def test_in_a_directory_of_the_repository(repository, capsys, monkeypatch):
    inner = repository / "project"
    inner.mkdir()
    write_run(inner, {"bits": 128}, {})
    commit(repository, "inner")
    monkeypatch.chdir(inner)
    assert compared(capsys, "HEAD", "workspace")["params"] == {}


def test_other_splits_do_not_compare(repository, capsys):
    write_run(repository, {}, {"splits": "6" * 16, "protocol": "holdout"})
    assert compared(capsys, "HEAD", "workspace")["notes"] == [
        "the protocols differ (scenes, holdout): these metrics do not compare",
        f"the splits differ ({'5' * 16}, {'6' * 16}): these metrics do not compare",
    ]


def test_what_the_lock_tells_against_the_files(repository, capsys):
    out = {"path": "reports/metrics.json", "md5": "0" * 32}
    stages = {"train": {"params": {"params.yaml": {"bits": 32, "seed": 0}}}, "evaluate": {"outs": [out]}}
    (repository / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))
    assert compared(capsys, "HEAD", "workspace")["notes"] == [
        "workspace: bits in params.yaml changed after the run that dvc.lock records",
        "workspace: reports/metrics.json is not that of the run that dvc.lock records",
    ]


def test_numbers_that_only_dvc_reads_as_numbers_are_no_change(repository, capsys):
    (repository / "params.yaml").write_text("bits: 32\nepsilon: 1.0e-08\n")
    lock = "stages:\n  train:\n    params:\n      params.yaml:\n        epsilon: 1e-08\n  evaluate:\n    outs: []\n"
    (repository / "dvc.lock").write_text(lock)
    assert compared(capsys, "HEAD", "workspace")["notes"] == []


def test_tables_and_markdown(repository, capsys):
    compare("short", "HEAD", False, False)
    said = capsys.readouterr().out
    for words in ("Parameters that differ", "train.epochs", "+0.2500", "itq map_all_tie_aware", "feature_cosine map_"):
        assert words in said
    assert "itq map_all_stable" not in said  # tie-aware where it is
    compare("short", "HEAD", False, True)
    said = capsys.readouterr().out
    assert "### Parameters that differ\n\n| parameter | short | HEAD |\n| --- | ---: | ---: |\n" in said
    assert "\n| bits | 32 | 64 |\n" in said
    assert "| map\\_all\\_tie\\_aware | 0.5000 | 0.7500 | +0.2500 |" in said
    compare("HEAD", "HEAD", False, True)
    assert "### Parameters that differ\n\nNone." in capsys.readouterr().out


def test_markup_in_a_parameter_is_text(repository, capsys):
    write_run(repository, {"concepts": {"prompt": "[red]a | <b>{concept}</b>[/red]"}}, {})
    compare("HEAD", "workspace", False, False)
    assert "[red]a | <b>{concept}</b>[/red]" in capsys.readouterr().out
    compare("HEAD", "workspace", False, True)
    assert "\\[red\\]a \\| &lt;b&gt;{concept}" in capsys.readouterr().out


@pytest.mark.parametrize(("revision", "words"), [
    ("nowhere", "nowhere: no revision of git and no experiment of DVC; "), ("--help", "--help: no revision"),
    ("HEAD:params.yaml", "HEAD:params.yaml: no revision"), ("", ": no revision"), ("a b", "a b: no revision"),
])  # fmt: skip
def test_unknown_revision_is_one_line(repository, revision, words):
    with pytest.raises(InputError) as error:
        compare("HEAD", revision, False, False)
    assert str(error.value).startswith(words) and "\n" not in str(error.value)


def test_revision_without_metrics(repository):
    (repository / "reports/metrics.json").unlink()
    commit(repository, "without")
    with pytest.raises(InputError, match=r"^HEAD: has no reports/metrics\.json; run the pipeline there"):
        compare("short", "HEAD", False, False)
    (repository / "reports/metrics.json").write_text("[")
    with pytest.raises(InputError, match=r"^workspace: reports/metrics\.json is no JSON object"):
        compare("short", "workspace", False, False)


def test_outside_of_a_repository(workplace, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(workplace.parent))
    with pytest.raises(InputError, match="no git repository"):
        compare("HEAD", "workspace", False, False)


def test_command_line(repository, run_stages):
    assert "Parameters that differ" in run_stages(repository, "compare", "short").check().stdout
    assert json.loads(run_stages(repository, "compare", "short", "HEAD", "--json").check().stdout)["runs"]
    assert run_stages(repository, "compare", "HEAD", "nowhere").error().startswith("nowhere: no revision")
    assert run_stages(repository, "compare", "HEAD", "short", "--json", "--markdown").error() == (
        "--json, --markdown: choose one of them"
    )
