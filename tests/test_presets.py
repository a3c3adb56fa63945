"""Presets: every value is what its source says, every preset is accepted by the stages, and comments stay."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from stage_runner import ROOT

from stages import presets
from stages.__main__ import STAGES
from stages.errors import InputError
from stages.params import parse

PARAMS = ROOT / "params.yaml"

#: The values of the released code, as it writes them. UHSCM.py and generate_sim.py of rongchengtu1/UHSCM, and the
#: command of its README; the defaults of run_dsch_*.py of Bruce-XJChen/DSCH.
RELEASED: dict[str, dict[str, Any]] = {
    "uhscm_paper": {
        "train.batch_size": 128, "train.epochs": 60, "train.lr": 0.006, "train.weight_decay": 10**-5,
        "backbone.model": "vgg19", "train.backbone.lr_pretrained": 0.05, "train.optimizer": "sgd",
        "train.momentum": 0.0, "train.uhscm.beta": 0.001, "concepts.tau": 3.0, "concepts.min_frequency": 0.5,
        "concepts.max_frequency": None, "similarity.form": "signed", "train.uhscm.gamma": 0.2,
        "train.uhscm.positive": 0.8, "train.uhscm.alpha": 0.2, "method": "uhscm", "train.network": "backbone",
        "train.backbone.image_size": 224, "concepts.vocabulary": "stages/mine/vocabularies/nuswide81.txt",
    },
    "dsch_paper": {
        "train.batch_size": 15, "train.epochs": 10, "train.dsch.round": 1, "train.lr": 0.0005, "components.fine": 1000,
        "components.reg_covar": 10**-6, "components.coarse": 100, "components.covariance": "full",
        "train.dsch.fine": 0.1, "train.dsch.coarse": 0.1, "train.dsch.temperature": 1.0,
        "train.epsilon": 1.0, "train.schedule": "staircase", "train.weight_decay": 0.0, "method": "dsch",
        "train.network": "backbone", "train.backbone.image_size": 224, "train.backbone.lr_pretrained": 1.0,
    },
}  # fmt: skip

each = pytest.mark.parametrize("name", presets.names())


def value(content: dict, key: str) -> Any:
    for part in key.split("."):
        content = content[part]
    return content


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def test_there_is_one_of_each_paper_for_each_of_its_data_sets() -> None:
    sets = ("cifar10", "mirflickr25k", "nuswide")
    assert presets.names() == [f"{paper}/{name}" for paper in ("dsch_paper", "uhscm_paper") for name in sets]


@each
def test_values_are_those_of_the_source(name: str, file: Path) -> None:
    paper, dataset = name.split("/")
    presets.apply(name, file)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert content["dataset"]["name"] == dataset
    for key, expected in RELEASED[paper].items():
        assert value(content, key) == expected, key
        assert type(value(content, key)) is type(expected), key


@each
def test_every_value_has_its_source_in_a_comment(name: str) -> None:
    paper, _ = name.split("/")
    text = (presets.DIRECTORY / f"{paper}.yaml").read_text(encoding="utf-8")
    for key in RELEASED[paper]:
        last = key.rsplit(".", 1)[-1]
        if last not in ("method", "network"):
            lines = re.findall(rf"^ +{last}: .*$", text, re.MULTILINE)
            assert any("#" in line for line in lines), key


@each
def test_every_preset_is_accepted(name: str, file: Path) -> None:
    presets.apply(name, file)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if name.endswith("nuswide"):
        content["dataset"]["path"] = "nuswide"
    for stage in STAGES:
        parse(importlib.import_module(f"stages.{stage}.config").Params, content)
    assert (ROOT / content["concepts"]["vocabulary"]).is_file()


@each
def test_comments_and_all_other_values_stay(name: str, file: Path) -> None:
    changes = presets.apply(name, file)
    before, after = (path.read_text(encoding="utf-8").splitlines() for path in (PARAMS, file))
    differing = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(differing) == len(changes)
    for old, new in differing:
        assert old.partition("#")[2] == new.partition("#")[2]
        assert old.split(":")[0] == new.split(":")[0]
    assert presets.apply(name, file) == []  # it is there already
    assert file.read_text(encoding="utf-8").splitlines() == after


def test_one_preset_after_the_other_is_the_other(file: Path, tmp_path: Path) -> None:
    """Both of one paper: what one data set needs does not stay behind for the next."""
    alone = tmp_path / "alone.yaml"
    alone.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    presets.apply("uhscm_paper/nuswide", file)
    for path in (file, alone):
        presets.apply("uhscm_paper/cifar10", path)
    assert yaml.safe_load(file.read_text(encoding="utf-8")) == yaml.safe_load(alone.read_text(encoding="utf-8"))


def test_what_changes_is_told(file: Path) -> None:
    changes = presets.apply("uhscm_paper/cifar10", file)
    assert 'dataset.name: "scenes" -> "cifar10"' in changes
    assert "concepts.max_frequency: 0.5 -> null" in changes


def test_faults_are_told_in_one_line(file: Path, tmp_path: Path) -> None:
    for name in ("uhscm", "uhscm_paper/coco", "uhscm_paper/common", "../uhscm_paper/cifar10"):
        with pytest.raises(InputError, match=rf"preset '{name}': there is none .*uhscm_paper/cifar10"):
            presets.apply(name, file)
    with pytest.raises(InputError, match=r"none\.yaml: not found in"):
        presets.apply("uhscm_paper/cifar10", tmp_path / "none.yaml")
    text = file.read_text(encoding="utf-8")
    for content, message in (
        ("train: [", "not valid YAML"), ("dataset: 3\n", "'dataset.labels'"),
        (text.replace("  momentum:", "  momentumm:"), "unknown key 'train.momentum'; did"),
        (text.replace("train:\n  network", "other:\n  network"), "unknown key 'train'"),
    ):  # fmt: skip
        file.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=message) as error:
            presets.apply("uhscm_paper/cifar10", file)
        assert "\n" not in str(error.value)
        assert file.read_text(encoding="utf-8") == content
