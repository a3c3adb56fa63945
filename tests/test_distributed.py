"""Training by several ranks: what one process trains, written by one rank; and none waits for another that is gone."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import chdir, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_backbone_training
import test_neighbours
import torch
from rank_processes import Ended, command, launch
from safetensors.torch import load_file
from stage_runner import ROOT, leftovers, write_params
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from training_run import train_params, write_training_inputs

from stages import __main__ as program
from stages.artifacts import COMPONENTS, FEATURES, HASHNET, RESUME
from stages.components.artifact import read_components
from stages.errors import InputError
from stages.features import Features
from stages.hashnet import load_hashnet, relaxed_codes
from stages.images import ImageShards
from stages.train import streamed, trainer
from stages.train.batches import Batches, CachedViews
from stages.train.distributed import ALONE, Ranks, current, joined
from stages.train.estep import e_step, first_components
from stages.train.image_batches import ImageBatches, store
from stages.train.methods.registry import METHODS
from stages.train.stage import CURVES, run
from stages.train.streamed import StreamedViews
from stages.train.whole_batch import Replica
from stages.workers import cores

#: AdamW divides a gradient by its size, and that of the bias before a batch normalisation is nothing but rounding.
SGD = {"optimizer": "sgd", "lr": 0.1}

#: Trainings: method, and changes of the section ``train``.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{method: (method, {**SGD, "epochs": 7 if method == "dsch" else 2}) for method in METHODS},
    "adamw": ("uhscm", {"epsilon": 1e-3, "epochs": 2}), "streamed": ("dsch", SGD),
    "streamed, without views": ("fused", {**SGD, "epochs": 2}),
    "dropout": ("fused", {**SGD, "epochs": 2, "dropout": 0.5}),
}  # fmt: skip
#: E-steps: changes of the section ``components``.
E_STEPS: dict[str, dict[str, Any]] = {
    "diagonal": {}, "spherical": {"covariance": "spherical"}, "full": {"covariance": "full"},
    "k-means": {"mixture": "kmeans"}, "batches": {"batch": 12}, "hard": {"assignment": "hard"},
}  # fmt: skip
#: Images of the batches that a network with all kinds of layers is trained on, of two views each.
COUNTS = (7, 6)


def work() -> None:
    """All trainings, E-steps and steps, each in its directory below the current one."""
    with program.one_line_errors(), joined() if "WORLD_SIZE" in os.environ else nullcontext():
        for case, (method, changes) in CASES.items():
            with chdir(case), pytest.MonkeyPatch.context() as patch:
                if case.startswith("streamed"):
                    patch.setattr(streamed, "WINDOW", 20 * 12 * 2)
                    patch.setattr(streamed, "BLOCK", 3)
                constants = test_neighbours.short("duh_eg").train.duh_eg
                run(train_params(method, duh_eg=constants.model_dump(), **changes))
        ranks = current()
        with chdir("dsch"):
            for kind in E_STEPS:
                np.savez(f"e-step {kind} {ranks.rank}", **e_step_of(kind, ranks))
            np.savez(f"step {ranks.rank}", **steps_of_layers(ranks))


def e_step_of(kind: str, ranks: Ranks) -> dict[str, np.ndarray]:
    """Components that are placed among codes, and re-estimated on them."""
    first = read_components()
    codes = torch.tanh(torch.randn(41, 16, generator=torch.Generator().manual_seed(3)))[ranks.part(41)]
    options = first.options.model_copy(update=E_STEPS[kind])
    placed = first_components(codes, first, ranks)
    found = e_step(codes, placed, options, 0, ranks)
    return {f"{when} {name}": value.numpy() for when, parts in (("before", placed), ("after", found))
            for name, value in vars(parts).items()}  # fmt: skip


class Layers(nn.Module):
    """What backbones are made of; a parameter that is not used; and a part that is computed again for its gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3))
        self.again = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), DropPath(0.4))
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8, affine=False), nn.Dropout())
        self.unused = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(checkpoint(self.again, self.first(images), use_reentrant=False))


def steps_of_layers(ranks: Ranks) -> dict[str, np.ndarray]:
    """Codes, parameters and buffers after a step on each of two batches, in double precision."""
    torch.manual_seed(1)
    net, head = Layers().double().train(), nn.Linear(8, 1).double()
    replica, found = Replica(net, head.parameters(), ranks), {}
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], 0.1, eps=1e-3)
    for step, count in enumerate(COUNTS):
        images = torch.randn(2 * count, 3, 6, 6, dtype=torch.float64)
        codes = replica(images[ranks.places(count, 2)], count)
        loss = (codes @ codes.T).tanh().mean() + head(codes).sigmoid().mean()
        optimizer.zero_grad()
        replica.backward(loss)
        optimizer.step()
        found[f"codes {step}"] = codes.detach().numpy()
    return found | {name: value.numpy() for name, value in (net.state_dict() | head.state_dict()).items()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs of a training; only to be read."""
    directory = tmp_path_factory.mktemp("inputs")
    with chdir(directory):
        write_training_inputs()
        test_neighbours.write_concepts()
    return directory


@pytest.fixture(scope="module")
def untrained(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs of all trainings; only to be read."""
    directory = tmp_path_factory.mktemp("untrained")
    for case in CASES:
        shutil.copytree(inputs, directory / case)
    return directory


@pytest.fixture(scope="module")
def alone(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process trains."""
    directory = tmp_path_factory.mktemp("alone")
    shutil.copytree(untrained, directory, dirs_exist_ok=True)
    threads = torch.get_num_threads()
    with chdir(directory):
        work()
    torch.set_num_threads(threads)
    return directory


@pytest.fixture(scope="module", params=[2, 4])
def together(request: pytest.FixtureRequest, untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What ranks train, half of them on each of two machines that share no disk."""
    machines = [tmp_path_factory.mktemp(f"machine{number}") for number in range(2)]
    for machine in machines:
        shutil.copytree(untrained, machine, dirs_exist_ok=True)
    ended = launch([machine for machine in machines for _ in range(request.param // 2)], work)
    assert ended == [Ended(0, "")] * request.param, "".join(rank.stderr for rank in ended)
    return machines


def curve(directory: Path) -> np.ndarray:
    return np.loadtxt(directory / CURVES / "plots/metrics/loss.tsv", skiprows=1)[:, 1]


def codes_of(directory: Path) -> np.ndarray:
    with chdir(directory), Features() as features:
        return relaxed_codes(load_hashnet()[0], torch.from_numpy(features.train())).numpy()


def assert_same_training(found: Path, expected: Path) -> None:
    np.testing.assert_allclose(codes_of(found), codes_of(expected), atol=1e-5)
    assert_same_weights(found, expected)


def assert_same_weights(found: Path, expected: Path) -> None:
    np.testing.assert_allclose(curve(found), curve(expected), rtol=1e-5, atol=1e-5)
    weights, wanted = (load_file(place / HASHNET / "model.safetensors") for place in (found, expected))
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_ranks_train_what_one_process_trains(alone: Path, together: list[Path], case: str) -> None:
    first, second = (machine / case for machine in together)
    assert_same_training(first, alone / case)
    assert not any((second / path).exists() for path in (HASHNET, CURVES))  # the first rank alone writes
    assert leftovers(first) == leftovers(second) == []


def saved(machines: list[Path], name: str) -> list[dict[str, np.ndarray]]:
    """What every rank saved."""
    files = [file for machine in machines for file in sorted(machine.glob(f"dsch/{name} *.npz"))]
    return [dict(np.load(file)) for file in files]


@pytest.mark.parametrize("kind", E_STEPS)
def test_an_e_step_of_ranks_is_that_of_one_process(alone: Path, together: list[Path], kind: str) -> None:
    """To 1e-5, and in all ranks to the bit."""
    [expected], found = saved([alone], f"e-step {kind}"), saved(together, f"e-step {kind}")
    assert len(found) in (2, 4)
    for name, value in expected.items():
        np.testing.assert_allclose(found[0][name], value, rtol=1e-5, atol=1e-5, err_msg=name)
        assert all(np.array_equal(other[name], found[0][name]) for other in found[1:]), name
    assert not np.array_equal(expected["before fine"], expected["after fine"])


def test_layers_see_the_whole_batch(alone: Path, together: list[Path]) -> None:
    """Moments and gradients over the rows of all ranks, and what dropout draws for them; in ranks of unequal shares."""
    [expected], found = saved([alone], "step"), saved(together, "step")
    for name, value in expected.items():
        for other in found:
            np.testing.assert_allclose(other[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", ["cached", "streamed", "images"])
@pytest.mark.parametrize("views", [0, 1, 2])
def test_batches_of_ranks_make_up_those_of_one_process(
    here: Path, monkeypatch: pytest.MonkeyPatch, kind: str, views: int
) -> None:
    monkeypatch.setattr(streamed, "WINDOW", 20 * 12 * 2)
    images = store(ImageShards(), here / "images.bin")

    def made(features: Features, ranks: Ranks) -> Batches:
        if kind == "cached":
            return CachedViews(*(torch.from_numpy(part) for part in (features.views(), features.train())), 9, ranks)
        if kind == "streamed":
            return StreamedViews(features, 9, torch.device("cpu"), ranks)
        return ImageBatches(images, 8, 9, 0, torch.device("cpu"), ranks)

    with Features() as features:
        whole = list(made(features, ALONE).epoch(views, 5))
        parts = [list(made(features, Ranks(rank, 3)).epoch(views, 5)) for rank in range(3)]
    for (inputs, rows), *shares in zip(whole, *parts, strict=True):
        assert all(torch.equal(of, rows) for _, of in shares)
        found, shown = torch.full_like(inputs, 99), max(views, 1)
        for rank, (share, _) in enumerate(shares):
            found[Ranks(rank, 3).places(len(rows) // shown, shown)] = share
        assert torch.equal(found, inputs)


# Faults


def stop(at: int, victim: int, number: int) -> None:
    """Let the `victim` among the ranks have a signal at the beginning of epoch `at`."""
    derived_seed = trainer.derived_seed

    def seed_of(seed: int, epoch: int) -> int:
        if epoch == at and os.environ["RANK"] == str(victim):
            os.kill(os.getpid(), number)
        return derived_seed(seed, epoch)

    trainer.derived_seed = seed_of


def goes_on(at: int) -> None:
    """Fail unless the training begins with epoch `at`."""
    derived_seed, begun = trainer.derived_seed, []

    def seed_of(seed: int, epoch: int) -> int:
        begun.append(epoch)
        assert begun[0] == at
        return derived_seed(seed, epoch)

    trainer.derived_seed = seed_of


def start(directory: Path, inputs: Path, method: str = "dsch", **changes: Any) -> Path:
    """A directory with the inputs, and parameters of a training."""
    shutil.copytree(inputs, directory)
    write_params(directory, train_params(method, **SGD, **changes).model_dump(mode="json"))
    return directory


GONE = (
    "error: train: another rank is gone, killed or with its machine; the same command goes on at the last checkpoint\n"
)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others_and_the_next_run_goes_on_with_as_many_as_there_are(
    inputs: Path, alone: Path, tmp_path: Path, victim: int
) -> None:
    directory = start(tmp_path / "run", inputs)
    ended = launch([directory] * 2, command, "train", partial(stop, 5, victim, signal.SIGKILL))
    assert ended[victim] == Ended(-signal.SIGKILL, "")
    assert ended[1 - victim] == Ended(1, GONE)
    assert not any((directory / path).exists() for path in (HASHNET, CURVES, "reports/timings"))
    assert [file.name for file in directory.glob(f"{RESUME}/train-*/*")] == ["checkpoint.pt"]
    if victim:
        ended = launch([directory] * 3, command, "train", partial(goes_on, 4))
        assert ended == [Ended(0, "")] * 3
    else:
        with chdir(directory), pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "derived_seed", trainer.derived_seed)
            goes_on(4)
            run(train_params("dsch", **SGD))
    assert_same_training(directory, alone / "dsch")
    assert leftovers(directory) == []


def test_a_terminated_rank_ends_the_others_with_one_line(inputs: Path, tmp_path: Path) -> None:
    directory = start(tmp_path / "run", inputs)
    ended = launch([directory] * 2, command, "train", partial(stop, 5, 1, signal.SIGTERM))
    assert ended == [Ended(1, ""), Ended(143, "error: terminated; the same command resumes\n")]
    assert not (directory / HASHNET).exists()


def test_errors_are_told_once(inputs: Path, tmp_path: Path) -> None:
    """Of the rank that has one, or, where all have the same, of the first to say it."""
    machines = [start(tmp_path / f"machine{number}", inputs, batch_size=3) for number in range(2)]
    told = "error: train.batch_size: batches of 2 images for 3 ranks; set more, or start fewer ranks\n"
    ended = launch([*machines, machines[1]], command, "train")
    assert [rank.exitcode for rank in ended] == [2, 2, 2]
    assert sorted(rank.stderr for rank in ended) == ["", "", told]

    write_params(machines[1], train_params("uhscm").model_dump(mode="json"))
    ended = launch(machines, command, "train")
    assert ended[0] == Ended(1, "")
    assert ended[1].exitcode == 2
    assert ended[1].stderr.startswith("error: data: rank 1 has other artifacts, parameters, code or libraries than")

    (machines[0] / COMPONENTS).unlink()
    ended = launch(machines, command, "train")
    told = f"error: {COMPONENTS}: not found; rebuild it with `dvc repro components`\n"
    assert ended == [Ended(2, told), Ended(1, "")]
    (machines[1] / FEATURES).unlink()
    (machines[1] / COMPONENTS).unlink()
    ended = launch(machines, command, "train")
    assert [rank.exitcode for rank in ended] == [2, 2] and sum(bool(rank.stderr) for rank in ended) == 1


def test_every_rank_of_a_machine_has_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: there is none here."""
    taken: list[int] = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [str(Ranks(rank, 4, rank % 2).device(gpu)) for rank in (2, 3)] == ["cuda:0", "cuda:1"]
    assert taken == [0, 1]
    assert (ALONE.device(gpu), Ranks(3, 4, 3).device(cpu)) == (gpu, cpu)
    with pytest.raises(InputError, match=r"^device: process 3 of a machine with 2 GPUs; .*--nproc-per-node"):
        Ranks(2, 4, 2).device(gpu)
    with pytest.raises(InputError, match=r"^device: mps trains in one process alone; set cpu$"):
        Ranks(0, 2, 0).device(torch.device("mps"))


@pytest.mark.parametrize(("ranks", "share"), [(1, 6), (2, 3), (4, 1), (99, 1)])
def test_ranks_share_the_cores_of_their_machine(monkeypatch: pytest.MonkeyPatch, ranks: int, share: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert cores() == share


def test_stages_in_one_process_say_so(tmp_path: Path) -> None:
    told = "error: components: runs in one process (WORLD_SIZE is set); start it without torchrun\n"
    assert launch([tmp_path] * 2, command, "components") == [Ended(2, told)] * 2


@pytest.mark.parametrize("arguments", [["--merge"], ["--shard", "0/2"]])
def test_parts_of_a_stage_say_so_too(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages", "extract", *arguments], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "WORLD_SIZE": "2"},
    )  # fmt: skip
    told = "error: extract: runs in one process (WORLD_SIZE is set); start it without torchrun\n"
    assert (done.returncode, done.stderr) == (2, told)


@pytest.mark.parametrize("world", ["", "two", "0", "-1", "1.5"])
def test_a_number_of_processes_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, world: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(InputError, match=f"^WORLD_SIZE: '{world}' is no number of processes; unset it, or start"):
        program.run_stage("mine")


def test_variables_that_do_not_tell_of_the_others_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"^WORLD_SIZE: is set, but .*RANK.*; start several processes with torchrun$"):
        program.run_stage("train")


@pytest.mark.slow
def test_ranks_train_a_backbone_from_its_images(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """With decoding processes; ranks of a machine share the copy of the images."""
    source = test_backbone_training.scene_inputs(tmp_path_factory.mktemp("scenes"))
    one, two = (shutil.copytree(source, tmp_path / name) for name in ("one", "two"))
    options = test_backbone_training.params("dsch", backbone={"workers": 1})
    with chdir(one):
        run(options)
    write_params(two, options.model_dump(mode="json"))
    assert launch([two] * 2, command, "train") == [Ended(0, "")] * 2
    assert_same_weights(two, one)
    assert leftovers(two) == []


@pytest.mark.nightly
def test_torchrun_starts_the_ranks(inputs: Path, alone: Path, tmp_path: Path) -> None:
    directory = start(tmp_path / "run", inputs)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "stages", "train"],
        cwd=directory, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert leftovers(directory) == [] and (directory / "reports/timings/train.json").exists()
    assert_same_training(directory, alone / "dsch")
