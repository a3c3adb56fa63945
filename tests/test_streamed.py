"""Features on disk: the same rows and codes as in memory, whole epochs in windows, and no more memory than a window."""

import shutil
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from training_run import run_interrupted, train_params

from stages.artifacts import FEATURES, HASHNET, PROVENANCE_KEY, RESUME, Provenance
from stages.components.artifact import read_components
from stages.errors import InputError
from stages.features import Features
from stages.hashnet import HashNet, HashNetConfig, load_hashnet, relaxed_codes
from stages.hdf5 import write_text
from stages.mine.distribution import read_distribution
from stages.train import streamed
from stages.train.batches import batches
from stages.train.methods.objective import Inputs, Objective
from stages.train.methods.registry import METHODS
from stages.train.stage import CURVES, run
from stages.train.streamed import StreamedRows, StreamedTensor, StreamedViews, array_of, windows

CPU = torch.device("cpu")


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 20 of the 41 images, or of ten with two views of each, in blocks of three."""
    monkeypatch.setattr(streamed, "WINDOW", 20 * 12 * 2)
    monkeypatch.setattr(streamed, "BLOCK", 3)


def in_memory(features: Features) -> torch.Tensor:
    return torch.from_numpy(features.train())


def on_disk(features: Features) -> StreamedTensor:
    return StreamedTensor(StreamedRows(features), CPU)


# Windows


@pytest.mark.parametrize("block", [1, 4, 64])
@pytest.mark.parametrize(("batch_size", "most"), [(3, 3), (3, 10), (7, 5), (7, 40), (16, 1000)])
def test_windows_hold_every_image_once_in_batches_of_the_usual_sizes(
    monkeypatch: pytest.MonkeyPatch, block: int, batch_size: int, most: int
) -> None:
    monkeypatch.setattr(streamed, "BLOCK", block)
    for n in (*range(2, 30), 101):
        seen, sizes = [], []
        for blocks, parts in windows(n, batch_size, most, torch.Generator().manual_seed(n)):
            starts, stops = blocks.unbind(1)
            assert (stops > starts).all() and (stops - starts <= block).all() and (starts[1:] >= stops[:-1]).all()
            images = np.concatenate([np.arange(*one) for one in blocks.tolist()])
            assert len(images) <= max(most, batch_size)
            assert sorted(torch.cat(parts).tolist()) == list(range(len(images)))
            seen += [images[places] for places in parts]
            sizes += [len(places) for places in parts]
        assert sizes == [len(part) for part in batches(n, batch_size, torch.Generator())]
        assert sorted(np.concatenate(seen).tolist()) == list(range(n))


def test_the_generator_decides_on_the_blocks_of_a_window_and_the_order_in_it() -> None:
    def drawn(seed: int) -> tuple[list, list]:
        found = list(windows(10_000, 8, 2000, torch.Generator().manual_seed(seed)))
        return [blocks.tolist() for blocks, _ in found], [part.tolist() for _, parts in found for part in parts]

    assert drawn(0) == drawn(0)
    assert all(one != other for one, other in zip(drawn(0), drawn(1), strict=True))
    blocks, parts = drawn(0)
    starts = [start for start, _ in blocks[0]]
    assert len(blocks) == 5 and min(starts) < 1000 and max(starts) > 9000
    assert parts[0] != sorted(parts[0])


# Batches


@pytest.mark.parametrize("n_views", [0, 1, 2, 3])
def test_each_step_sees_distinct_views_of_its_images(here: Path, small_windows: None, n_views: int) -> None:
    with Features() as features:
        expected = features.views() if n_views else features.train()[None]
        data, order, used = StreamedViews(features, 5, CPU), [], set()
        for inputs, rows in data.epoch(n_views, seed=3):
            assert inputs.dtype == torch.float32
            images = rows.reshape(max(n_views, 1), -1)
            assert (images == images[0]).all()
            order += images[0].tolist()
            distance = np.abs(expected[:, rows.numpy()] - inputs.numpy()).max(axis=2)
            np.testing.assert_array_less(distance.min(axis=0), 1e-6)  # unit rows of the images that the method is told
            for views in distance.argmin(axis=0).reshape(images.shape).T.tolist():
                assert len(set(views)) == len(views)
                used.add(tuple(views))
        again = torch.cat([rows for _, rows in data.epoch(n_views, seed=3)])
        other = torch.cat([rows for _, rows in data.epoch(n_views, seed=4)])
        found = torch.cat([rows for _, rows in data.epoch(n_views, seed=3)])
    assert sorted(order) == list(range(41))
    assert len(used) > n_views  # of 3 ordered choices of one view, and 6 of more
    assert torch.equal(again, found) and not torch.equal(other, found)


def test_an_epoch_is_shuffled_beyond_its_windows(here: Path, small_windows: None) -> None:
    """Images far from each other come together in a batch, and neighbours in different ones."""
    with Features() as features:
        epoch = [rows.tolist() for _, rows in StreamedViews(features, 5, CPU).epoch(0, seed=0)]
    assert max(max(rows) - min(rows) for rows in epoch) > 30
    batch_of = {row: number for number, rows in enumerate(epoch) for row in rows}
    assert sum(batch_of[row] != batch_of[row + 1] for row in range(40)) > 20


def test_all_codes_are_those_of_the_images(here: Path, small_windows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HashNet, "CHUNK", 7)
    net = HashNet(HashNetConfig(12, 5, 8, "dsch"))
    with Features() as features:
        codes = StreamedViews(features, 5, CPU).all_codes(net)
        assert torch.equal(codes, relaxed_codes(net, in_memory(features)))
    assert net.training


@pytest.mark.parametrize(
    "rows", [np.array([5, 0, 40, 5]), np.arange(41)[::-1], np.array([], np.int64), slice(3, 20), slice(None)]
)
def test_streamed_rows_are_the_rows(here: Path, rows: np.ndarray | slice) -> None:
    with Features() as features:
        whole, found = features.train(), StreamedRows(features)
        np.testing.assert_array_equal(found[rows], whole[rows])
        assert (found.shape, len(found)) == (whole.shape, 41)
        if isinstance(rows, np.ndarray):
            chosen = torch.from_numpy(rows.copy())
            assert torch.equal(on_disk(features)[chosen], in_memory(features)[chosen])
        assert torch.equal(torch.cat(list(on_disk(features).split(6))), in_memory(features))
        assert array_of(on_disk(features))[2:3].tolist() == array_of(in_memory(features))[2:3].tolist()


# Training


def make(method: str, features: Features, rows: streamed.Rows) -> Objective:
    distribution, _ = read_distribution(features)
    texts = np.eye(12, dtype=np.float32)
    return METHODS[method](
        Inputs(rows, read_components(), None, train_params(method).train, 16, 0, distribution, texts)
    )


@pytest.mark.parametrize("method", ["fused", "greedyhash", "bihalf", "sdc", "duh_eg"])
def test_a_method_learns_the_same_from_features_on_disk(here: Path, method: str) -> None:
    codes = torch.tanh(torch.randn(6, 16, generator=torch.Generator().manual_seed(0)))
    rows = torch.tensor([3, 40, 17, 3, 40, 17])
    with Features() as features:
        expected, found = (make(method, features, kind(features)).terms(codes, rows) for kind in (in_memory, on_disk))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["uhscm", "dsch", "fused", "cibhash", "greedyhash"])
def test_a_training_from_the_disk_learns_and_reproduces_itself(here: Path, small_windows: None, method: str) -> None:
    found = []
    for _ in range(2):
        run(train_params(method, epochs=6))
        found.append((HASHNET / "model.safetensors").read_bytes())
    curve = (CURVES / "plots" / "metrics" / "loss.tsv").read_text().splitlines()[1:]
    losses = [float(line.split("\t")[1]) for line in curve]
    assert losses[-1] < losses[0]
    assert found[0] == found[1]


def test_a_resumed_training_from_the_disk_is_the_undisturbed_one(
    here: Path, small_windows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(train_params("dsch"))
    undisturbed = (HASHNET / "model.safetensors").read_bytes()
    shutil.rmtree(HASHNET)
    run_interrupted(monkeypatch, train_params("dsch"))
    assert len(list(RESUME.glob("train-*/checkpoint.pt"))) == 1
    run(train_params("dsch"))
    assert (HASHNET / "model.safetensors").read_bytes() == undisturbed


@pytest.mark.parametrize("method", ["uhscm", "dsch", "fused"])
def test_features_are_streamed_exactly_where_they_do_not_fit(
    here: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """One byte less than all that the method is shown: three views, or the images themselves."""
    size = 41 * 12 * 2 * (1 if method == "fused" else 3)
    for window, expected in ((size, 0), (size - 1, 1)):
        epochs = []
        monkeypatch.setattr(streamed, "WINDOW", window)
        with monkeypatch.context() as patched:
            epoch = StreamedViews.epoch
            patched.setattr(StreamedViews, "epoch", lambda *a, e=epoch, k=epochs: k.append(1) or e(*a))
            run(train_params(method, epochs=1))
        assert len(epochs) == expected
    assert load_hashnet()[0].config.dim == 12


@pytest.mark.parametrize("method", ["uhscm", "fused"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_named(here: Path, small_windows: None, method: str, bad: float) -> None:
    with h5py.File(FEATURES, "a") as file:
        if method == "fused":
            file["image/features"][file["train/id"][30], 4] = bad
        else:
            file["train/views"][:, 30, 4] = bad
    with pytest.raises(InputError, match="features that are not finite numbers; rebuild it with `dvc repro extract`"):
        run(train_params(method))
    assert not HASHNET.exists()


# Memory


def peak_of(work: object) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("n_views", [0, 2])
def test_an_epoch_holds_no_more_than_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_views: int) -> None:
    """5 MB of features, and four times as much of views; half of the images are for training."""
    path, n, dim = tmp_path / "features.h5", 40_000, 64
    with h5py.File(path, "w") as file:
        write_text(file, PROVENANCE_KEY, Provenance("extract", "d" * 64, "e" * 64).to_json())
        file["image/features"], file["image/id"] = np.ones((n, dim), np.float16), np.arange(n)
        file.create_dataset("train/views", (8, n // 2, dim), np.float16, fillvalue=1, chunks=(1, 1024, dim))
        file["train/id"] = np.arange(0, n, 2)
    window = 2**19
    monkeypatch.setattr(streamed, "WINDOW", window)
    with Features(path) as features:
        data = StreamedViews(features, 32, CPU)
        peak = peak_of(lambda: [None for _ in data.epoch(n_views, seed=0)])
        assert window <= peak < 2.5 * window
        assert peak_of(lambda: features.images(np.array([0, n // 2, n - 1]))) < 10_000
        # What is asked for, and little besides.
        whole = n // 2 * dim * 4
        assert peak_of(features.train) < 1.5 * whole
        assert peak_of(features.views) < 8 * whole + 5 * window
