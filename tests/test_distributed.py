"""Training by several ranks: as one process trains, written by the first alone, and no rank waits for one that is gone."""

import os
import shutil
import signal
from collections.abc import Callable
from contextlib import chdir, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rank_processes import Ended, command, launch
from safetensors.torch import load_file
from stage_runner import ROOT, leftovers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from training_run import run_components, train_params, write_training_inputs

from stages import __main__ as program
from stages.artifacts import HASHNET, RESUME
from stages.components.artifact import read_components
from stages.features import Features
from stages.hashnet import HashNet, HashNetConfig, load_hashnet, relaxed_codes
from stages.train import streamed, trainer
from stages.train.batches import CachedViews
from stages.train.distributed import ALONE, Ranks, bounds, current, gather, joined
from stages.train.estep import e_step, first_components
from stages.train.image_batches import ImageBatches
from stages.train.methods.registry import METHODS
from stages.train.stage import CURVES, run
from stages.train.streamed import StreamedViews
from stages.train.whole_batch import Replica

#: Without a momentum's scale: AdamW divides by the size of a gradient, and that of the bias before the batch
#: normalisation is nothing but rounding.
SGD = {"optimizer": "sgd", "lr": 0.1}

#: Trainings: method, changes of the section ``train``, and of the components.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{method: (method, SGD, {}) for method in METHODS if method != "duh_eg"},
    "adamw": ("dsch", {"epsilon": 1e-3}, {}),
    "streamed": ("dsch", SGD, {}),
    "k-means": ("dsch", SGD, {"mixture": "kmeans"}),
    "batches": ("dsch", SGD, {"batch": 12, "assignment": "hard"}),
    "full": ("dsch", SGD, {"covariance": "full"}),
}


def train_cases() -> None:
    """All trainings, each in its directory below the current one."""
    several = "WORLD_SIZE" in os.environ
    with program.one_line_errors(), joined() if several else nullcontext():
        for case, (method, changes, _) in CASES.items():
            with chdir(case), pytest.MonkeyPatch.context() as patch:
                if case == "streamed":
                    patch.setattr(streamed, "WINDOW", 20 * 12 * 2)
                    patch.setattr(streamed, "BLOCK", 3)
                run(train_params(method, **changes))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs of every training; only to be read."""
    directory = tmp_path_factory.mktemp("inputs")
    with chdir(directory):
        write_training_inputs()
    return directory


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process trains."""
    directory = tmp_path_factory.mktemp("alone")
    for case, (*_, components) in CASES.items():
        shutil.copytree(inputs, directory / case)
        with chdir(directory / case):
            run_components(**components)
    shutil.copytree(directory, directory.with_name("untrained"))
    threads = torch.get_num_threads()
    with chdir(directory):
        train_cases()
    torch.set_num_threads(threads)
    return directory


@pytest.fixture(scope="module", params=[2, 4])
def together(request: pytest.FixtureRequest, alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ranks train, on two machines that share no disk; the first one's."""
    machines = [tmp_path_factory.mktemp(f"machine{number}") for number in range(2)]
    for machine in machines:
        shutil.copytree(alone.with_name("untrained"), machine, dirs_exist_ok=True)
    each = request.param // 2
    ended = launch([machine for machine in machines for _ in range(each)], train_cases)
    assert ended == [Ended(0, "")] * request.param
    for case in CASES:  # the other machine has nothing of it
        assert not any((machines[1] / case / path).exists() for path in (HASHNET, CURVES))
        assert [leftovers(machine / case) for machine in machines] == [[], []]
    return machines[0]


def curve(directory: Path) -> np.ndarray:
    return np.loadtxt(directory / CURVES / "plots/metrics/loss.tsv", skiprows=1)[:, 1]


def codes(directory: Path) -> np.ndarray:
    with chdir(directory), Features() as features:
        return relaxed_codes(load_hashnet()[0], torch.from_numpy(features.train())).numpy()


@pytest.mark.parametrize("case", CASES)
def test_ranks_train_what_one_process_trains(alone: Path, together: Path, case: str) -> None:
    np.testing.assert_allclose(curve(together / case), curve(alone / case), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(codes(together / case), codes(alone / case), atol=1e-5)
    found, expected = (load_file(place / case / HASHNET / "model.safetensors") for place in (together, alone))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
