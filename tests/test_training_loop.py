"""The training loop: batches, views, learning rate."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_run import train_params

from stages.hashnet import HashNet, HashNetConfig
from stages.train.batches import CachedViews, batches
from stages.train.methods.objective import Objective
from stages.train.trainer import MeanLosses, make_optimizer, train


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_learning_rate_falls_to_zero_on_a_cosine(optimizer: str) -> None:
    options = train_params(optimizer=optimizer, lr=0.5, weight_decay=0.125).train
    found, schedule = make_optimizer(HashNet(HashNetConfig(3, 4, 8, "uhscm")).parameters(), options, 10)
    assert found.param_groups[0]["weight_decay"] == 0.125
    rates = []
    for _ in range(11):
        rates.append(schedule.get_last_lr()[0])
        found.step()
        schedule.step()
    np.testing.assert_allclose(rates, [0.25 * (1 + math.cos(math.pi * step / 10)) for step in range(11)], atol=1e-9)


@pytest.mark.parametrize("batch_size", [3, 4, 7, 128])
def test_batches_hold_every_row_once_and_none_holds_one(batch_size: int) -> None:
    for n in range(2, 140):
        parts = list(batches(n, batch_size, torch.Generator().manual_seed(n)))
        sizes = [len(part) for part in parts]
        assert len(parts) == math.ceil(n / batch_size)
        assert sorted(torch.cat(parts).tolist()) == list(range(n))
        assert max(sizes) - min(sizes) <= 1
        assert 2 <= min(sizes) <= max(sizes) <= batch_size


def test_batches_are_shuffled_by_their_generator() -> None:
    one, same, other = (torch.cat(list(batches(50, 8, torch.Generator().manual_seed(s)))).tolist() for s in (1, 1, 2))
    assert one == same != other
    assert one != sorted(one)


@pytest.mark.parametrize("n_views", [0, 1, 2])
def test_batches_of_cached_views_are_drawn_as_ever(n_views: int) -> None:
    """The order and the views that the committed results were made with, bit by bit."""
    views, images = torch.randn(3, 11, 2), torch.randn(11, 2)
    generator = torch.Generator().manual_seed(5)
    expected = []
    for rows in torch.randperm(11, generator=generator).tensor_split(3):
        if n_views:
            order = torch.rand(3, len(rows), generator=generator).argsort(dim=0)[:n_views]
            expected.append((views[order, rows].flatten(0, 1), rows.repeat(n_views)))
        else:
            expected.append((images[rows], rows))
    found = list(CachedViews(views, images, 4).epoch(n_views, 5))
    for one, other in zip(found, expected, strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("kept", [1, 2, 3, 1000])
def test_mean_losses_are_those_of_every_step(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """Summed in double precision, step by step, however many are read at a time."""
    monkeypatch.setattr(MeanLosses, "KEPT", kept)
    values, means = torch.rand(7, 2, generator=torch.Generator().manual_seed(0)), MeanLosses()
    for one, two in values:
        means.add({"one": one.requires_grad_(), "two": two})
    expected = {name: sum(column.tolist()) / 7 for name, column in zip(("one", "two"), values.T, strict=True)}
    assert means.read() == expected


class Recorder(nn.Module):
    """Stands in for a network: keeps what it is given while training."""

    CHUNK = 8

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seen: list[Tensor] = []

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.seen.append(features)
        return features * self.scale


class Watcher(Objective):
    """Stands in for a method: keeps the rows of each step."""

    def __init__(self, views: int) -> None:
        self.views = views
        self.rows: list[Tensor] = []
        self.estimated: list[Tensor] = []

    def begin_epoch(self, epoch: int, all_codes: Callable[[], Tensor]) -> None:
        self.estimated.append(all_codes())

    def terms(self, codes: Tensor, rows: Tensor) -> dict[str, Tensor]:
        self.rows.append(rows)
        return {"one": codes.mean(), "two": 2 * codes.mean()}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        raise AssertionError


@pytest.mark.parametrize("n_views", [1, 2, 3])
def test_each_step_sees_distinct_views_of_its_images(tmp_path: Path, n_views: int) -> None:
    """A feature is (row, view), so that what the network gets tells where it is from."""
    n, total = 11, 4
    views = torch.stack([torch.stack([torch.arange(n), torch.full((n,), view)], dim=1) for view in range(total)])
    net, watcher = Recorder().train(), Watcher(n_views)
    logged: list[dict[str, float]] = []
    options = train_params(batch_size=4, epochs=6, lr=1e-9).train
    data = CachedViews(views.float(), torch.zeros(n, 2), options.batch_size)
    train(net, data, watcher, options, 0, tmp_path / "checkpoint.pt", logged.append)

    assert len(net.seen) == len(watcher.rows) == 6 * 3
    used = set()
    for epoch in range(6):
        rows_of_epoch = []
        for step in range(3):
            seen, rows = net.seen[epoch * 3 + step].round().long(), watcher.rows[epoch * 3 + step]
            assert seen[:, 0].tolist() == rows.tolist()  # the codes belong to the rows that the method is told
            rows = rows.reshape(n_views, -1)
            assert (rows == rows[0]).all()
            for column in seen[:, 1].reshape(n_views, -1).T.tolist():
                assert len(set(column)) == n_views
                used.add(tuple(column))
            rows_of_epoch += rows[0].tolist()
        assert sorted(rows_of_epoch) == list(range(n))
    assert len(used) == math.perm(total, n_views) or n_views == 3  # every choice comes up
    assert len(used) > 4 * (n_views > 1)
    assert [codes.shape for codes in watcher.estimated] == [(n, 2)] * 6
    assert [entry["loss"] for entry in logged] == pytest.approx([entry["one"] + entry["two"] for entry in logged])
    assert net.training
