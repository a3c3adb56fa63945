"""Training: what it learns, that it reproduces itself, resumes exactly, and refuses what does not fit."""

import csv
import json
import math
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
import torch
import training_run
from safetensors.torch import load_file
from torch import nn
from training_run import train_params, write_distribution

from stages.artifacts import COMPONENTS, CONCEPT_DISTRIBUTION, FEATURES, HASHNET, PROVENANCE_KEY, RESUME, SIMILARITY
from stages.errors import InputError
from stages.features import Features
from stages.hashnet import HashNetConfig, load_hashnet, relaxed_codes
from stages.hdf5 import write_text
from stages.tables import read_table, write_table
from stages.train import trainer
from stages.train.checkpoint import write_checkpoint
from stages.train.config import Params
from stages.train.stage import CURVES, run

METHODS = ("uhscm", "dsch", "fused")


each_method = pytest.mark.parametrize("method", METHODS)


def curves() -> dict[str, str]:
    """What DVCLive wrote: file by file."""
    return {path.relative_to(CURVES).as_posix(): path.read_text() for path in Path(CURVES).rglob("*") if path.is_file()}


def curve(name: str) -> list[float]:
    with open(Path(CURVES) / "plots" / "metrics" / f"{name}.tsv", newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file, delimiter="\t")]


def weights() -> bytes:
    return (HASHNET / "model.safetensors").read_bytes()


@each_method
def test_the_loss_falls(here: Path, method: str) -> None:
    run(train_params(method, epochs=12))
    losses = curve("loss")
    assert len(losses) == 12
    assert losses[-1] < 0.95 * losses[0]
    assert all(map(math.isfinite, losses))


@each_method
def test_the_curves_are_one_row_an_epoch_of_every_term(here: Path, method: str) -> None:
    run(train_params(method))
    files = curves()
    terms = {Path(name).stem for name in files if name.endswith(".tsv")} - {"loss", "learning_rate"}
    named = {
        "uhscm": {"similarity", "contrastive", "quantization"}, "dsch": {"instance", "fine", "coarse"},
        "fused": {"bits"},
    }  # fmt: skip
    assert terms >= named[method]
    np.testing.assert_allclose(np.sum([curve(term) for term in terms], axis=0), curve("loss"), rtol=1e-4)
    assert all(len(text.splitlines()) == 8 for name, text in files.items() if name.endswith(".tsv"))
    assert not any(name.endswith(".yaml") for name in files)  # declared by hand in dvc.yaml


@each_method
def test_the_seed_decides_every_bit(here: Path, method: str) -> None:
    run(train_params(method))
    first, drawn = weights(), curves()
    torch.rand(11)
    run(train_params(method))
    assert weights() == first
    assert curves() == drawn
    run(train_params(method, seed=1))
    assert weights() != first


@pytest.mark.parametrize(
    ("method", "concepts", "own"), [("uhscm", True, 0.0), ("fused", True, 0.0), ("fused", False, 0.7)]
)
def test_features_are_hidden_as_asked_or_as_the_method_has_it(
    here: Path, method: str, concepts: bool, own: float
) -> None:
    if not concepts:
        write_distribution(count=0)
    found = []
    for share in (None, own, 0.5):
        run(train_params(method, epochs=2, dropout=share))
        found.append(weights())
    assert found[0] == found[1] != found[2]


def test_seeds_that_agree_in_their_low_bits_differ(here: Path) -> None:
    """PyTorch's generators take 32 bits of a seed."""
    found = set()
    for seed in (0, 4096, 20_240_101, 2**32 - 1):
        run(train_params("uhscm", seed=seed, epochs=1))
        found.add(weights())
        generator = torch.Generator().manual_seed(trainer.derived_seed(seed, 0))
        found.add(tuple(torch.randperm(50, generator=generator).tolist()))
    assert len(found) == 8


class Epochs:
    """Counts the epochs begun; interrupts before epoch `stop`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop: int | None = None) -> None:
        self.begun: list[int] = []
        self.stop = stop
        self._derived_seed = trainer.derived_seed
        monkeypatch.setattr(trainer, "derived_seed", self)

    def __call__(self, seed: int, epoch: int) -> int:
        if epoch == self.stop:
            raise KeyboardInterrupt
        self.begun.append(epoch)
        return self._derived_seed(seed, epoch)


@pytest.mark.parametrize(("method", "dropout"), [*((method, None) for method in METHODS), ("fused", 0.5)])
@pytest.mark.parametrize("stop", [3, 6])  # one epoch after a checkpoint; at a checkpoint, with an E-step to come
def test_a_resumed_training_is_the_undisturbed_one(
    here: Path, monkeypatch: pytest.MonkeyPatch, method: str, dropout: float | None, stop: int
) -> None:
    params = train_params(method, dropout=dropout)
    run(params)
    undisturbed, drawn = weights(), curves()
    shutil.rmtree(HASHNET)
    shutil.rmtree(CURVES)

    with monkeypatch.context() as patched:
        Epochs(patched, stop)
        with pytest.raises(KeyboardInterrupt):
            run(params)
    assert not HASHNET.exists()
    assert len(list(RESUME.glob("train-*/checkpoint.pt"))) == 1
    torch.rand(5)

    with monkeypatch.context() as patched:
        epochs = Epochs(patched)
        run(params)
    assert epochs.begun == list(range(stop // 2 * 2, 7))
    assert weights() == undisturbed
    assert curves() == drawn
    assert not list(RESUME.glob("train-*"))


def test_a_training_killed_after_its_last_checkpoint_only_writes_the_network(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = train_params(epochs=6)
    run(params)
    undisturbed, drawn = weights(), curves()
    shutil.rmtree(HASHNET)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("stages.train.stage.save_hashnet", stop)
        with pytest.raises(KeyboardInterrupt):
            run(params)
    with monkeypatch.context() as patched:
        epochs = Epochs(patched)
        run(params)
    assert epochs.begun == []
    assert weights() == undisturbed
    assert curves() == drawn


def _other_concepts() -> None:
    """As after an edit of the vocabulary: all parameters are as before."""
    training_run.write_distribution(sharpness=6.0)
    training_run.run_similarity()


@pytest.mark.parametrize(
    ("prepare", "changes"),
    [
        (lambda: None, {"bits": 32}),
        (lambda: None, {"seed": 1}),
        (lambda: None, {"method": "dsch"}),
        (lambda: None, {"lr": 0.004}),
        (_other_concepts, {}),
    ],
)
def test_a_checkpoint_of_another_training_is_not_used(
    here: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[], None], changes: dict[str, Any]
) -> None:
    with monkeypatch.context() as patched:
        Epochs(patched, 5)
        with pytest.raises(KeyboardInterrupt):
            run(train_params())
    prepare()
    epochs = Epochs(monkeypatch)
    run(train_params(**changes))
    assert epochs.begun == list(range(7))


class Hostile:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (Path("executed"),)


def test_a_checkpoint_runs_no_code(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        Epochs(patched, 5)
        with pytest.raises(KeyboardInterrupt):
            run(train_params())
    [checkpoint] = RESUME.glob("train-*/checkpoint.pt")
    write_checkpoint(checkpoint, {"net": Hostile()})
    with pytest.raises(InputError, match="holds something else than a training leaves"):
        run(train_params())
    assert not Path("executed").exists()


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[:-1], lambda data: data + b"0",
    lambda data: random.Random(0).randbytes(len(data)),
    *(partial(lambda share, data: flipped(data, int(share * len(data))), share) for share in (0, 0.1, 0.5, 0.9999)),
])  # fmt: skip
def test_a_damaged_checkpoint_is_refused_and_removed(
    here: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    run(train_params("dsch"))
    undisturbed = weights()
    with monkeypatch.context() as patched:
        Epochs(patched, 5)
        with pytest.raises(KeyboardInterrupt):
            run(train_params("dsch"))
    [checkpoint] = RESUME.glob("train-*/checkpoint.pt")
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(InputError, match=f"{re.escape(str(checkpoint))}: unfinished work, damaged .*run it again"):
        run(train_params("dsch"))
    run(train_params("dsch"))
    assert weights() == undisturbed


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def test_the_learning_rate_ends_at_zero(here: Path) -> None:
    run(train_params("uhscm", lr=0.01))
    rates = curve("learning_rate")
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 0.01
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n_train", [2, 3, 4, 10])
def test_every_small_number_of_images_trains(here: Path, n_train: int) -> None:
    training_run.write_features(n_train=n_train)
    training_run.write_distribution()
    training_run.run_similarity()
    training_run.run_components(fine=2, coarse=1, iterations=5)
    for method in METHODS:
        run(train_params(method, batch_size=3, epochs=4))
        assert all(value.isfinite().all() for value in load_hashnet()[0].state_dict().values())


def test_a_loss_that_is_not_finite_ends_the_training(here: Path) -> None:
    with pytest.raises(InputError, match=r"train\.lr: the loss is nan in epoch \d+; set less than 1e\+30"):
        run(train_params("uhscm", lr=1e30))
    assert not HASHNET.exists()


def test_the_stage_writes_a_network_and_where_it_is_from(here: Path) -> None:
    params = train_params("dsch", bits=24)
    run(params)
    net, provenance = load_hashnet()
    assert net.config == HashNetConfig(12, 16, 24, "dsch")
    assert not net.training
    assert (provenance.stage, provenance.dataset, provenance.model) == (
        "train",
        training_run.DIGEST,
        training_run.MODEL,
    )
    assert provenance.params == {**params.model_dump(exclude={"device"})}
    assert "torch" in provenance.versions
    assert sorted(path.name for path in HASHNET.iterdir()) == ["config.json", "model.safetensors"]


def test_the_network_loads_without_this_project(here: Path) -> None:
    """With nothing but PyTorch, safetensors and what ``config.json`` says."""
    run(train_params())
    config = json.loads((HASHNET / "config.json").read_text())
    net = nn.Sequential(
        nn.Linear(config["dim"], config["hidden"]),
        nn.BatchNorm1d(config["hidden"]),
        nn.ReLU(),
        nn.Linear(config["hidden"], config["bits"]),
        nn.Tanh(),
    )
    state = load_file(HASHNET / "model.safetensors")
    net.load_state_dict({name.removeprefix("layers."): value for name, value in state.items()})
    net.eval()
    with Features() as features:
        images = torch.from_numpy(features.images())
    with torch.no_grad():
        codes = net(images * config["dim"] ** 0.5)
    torch.testing.assert_close(relaxed_codes(load_hashnet()[0], images), codes)
    for layer in ("sqrt(dim)", "layers.0 Linear(dim, hidden)", "layers.1 BatchNorm1d(hidden)", "layers.3", "tanh"):
        assert layer in config["architecture"]


@pytest.mark.parametrize(
    ("method", "unread"),
    [("uhscm", [CONCEPT_DISTRIBUTION]), ("dsch", [CONCEPT_DISTRIBUTION, SIMILARITY]), ("fused", [SIMILARITY])],
)
def test_a_method_reads_no_more_of_the_concepts_than_it_learns_from(
    here: Path, method: str, unread: list[Path]
) -> None:
    for path in unread:
        path.unlink()
    run(train_params(method, epochs=1))
    assert HASHNET.exists()


def _edit_provenance(path: Path, **changes: str) -> None:
    with h5py.File(path, "a") as file:
        content = {**json.loads(file.attrs[PROVENANCE_KEY]), **changes}
        write_text(file, PROVENANCE_KEY, json.dumps(content))


def _of_another_data_set(path: Path, column: str) -> None:
    table, made_from, extra = read_table(path, {"id": pa.int64(), column: None})
    write_table(table, path, replace(made_from, dataset="c" * 64), extra)


def _other_training_images() -> None:
    with h5py.File(FEATURES, "a") as file:
        file["train/id"][:] = np.arange(41)


def _components_without_labels() -> None:
    with h5py.File(COMPONENTS, "a") as file:
        del file["coarse_labels"]


@pytest.mark.parametrize(
    ("method", "damage", "path", "message"),
    [
        ("uhscm", lambda: _of_another_data_set(SIMILARITY, "factor"), SIMILARITY, "another data set"),
        ("fused", lambda: _of_another_data_set(CONCEPT_DISTRIBUTION, "distribution"), CONCEPT_DISTRIBUTION,
         "another data set"),
        ("fused", lambda: _edit_provenance(COMPONENTS, model="f" * 64), COMPONENTS, "another model"),
        ("fused", lambda: _edit_provenance(COMPONENTS, dataset="f" * 64), COMPONENTS, "another data set"),
        ("uhscm", _other_training_images, SIMILARITY, "has other training images"),
        ("fused", _other_training_images, CONCEPT_DISTRIBUTION, "has other training images"),
        ("dsch", _other_training_images, COMPONENTS, "has other training images"),
        ("fused", _components_without_labels, COMPONENTS, "coarse_labels"),
        ("fused", lambda: COMPONENTS.write_bytes(COMPONENTS.read_bytes()[:500]), COMPONENTS, "rebuild it with"),
        ("fused", lambda: COMPONENTS.unlink(), COMPONENTS, "not found"),
        ("uhscm", lambda: SIMILARITY.unlink(), SIMILARITY, "not found"),
        ("fused", lambda: CONCEPT_DISTRIBUTION.unlink(), CONCEPT_DISTRIBUTION, "not found"),
        ("fused", lambda: CONCEPT_DISTRIBUTION.write_bytes(b"PAR1"), CONCEPT_DISTRIBUTION, "dvc repro mine"),
        ("fused", lambda: FEATURES.unlink(), FEATURES, "not found"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_named(
    here: Path, method: str, damage: Callable[[], None], path: Path, message: str
) -> None:
    damage()
    with pytest.raises(InputError, match=message) as error:
        run(train_params(method))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert not HASHNET.exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bits", 12, "bits: 12 is not allowed: must be a positive multiple of 8"),
        ("bits", 0, "bits: 0 is not allowed"),
        ("seed", 2**32, "seed: 4294967296 is not allowed"),
        ("method", "itq", "method: 'itq' is not allowed"),
        ("batch_size", 2, "train.batch_size: 2 is not allowed"),
        ("lr", 0.0, "train.lr: 0.0 is not allowed"),
        ("lr", float("nan"), "train.lr: nan is not allowed"),
        ("weight_decay", float("inf"), "train.weight_decay: inf is not allowed"),
        ("optimizer", "adam", "train.optimizer: 'adam' is not allowed"),
        ("patience", 3, "train.patience"),
    ],
)
def test_bad_parameters_are_named(key: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        train_params(**{key: value})


def test_parameters_are_frozen() -> None:
    params: Params = train_params()
    with pytest.raises(ValueError, match="frozen"):
        params.bits = 8
