"""The training loop, of a head and of a whole backbone: steps, checkpoints, one row of losses an epoch."""

import math
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from stages.backbone import BackboneNet
from stages.device import derived_seed
from stages.errors import InputError
from stages.hashnet import Network
from stages.progress import progress_bar
from stages.train.batches import Batches, number_of_batches
from stages.train.checkpoint import read_checkpoint, write_checkpoint
from stages.train.config import Train
from stages.train.distributed import ALONE, Ranks
from stages.train.methods.objective import Objective
from stages.train.whole_batch import Replica

History = list[dict[str, float]]

#: DSCH's released code multiplies the learning rate by the one every so many steps.
STAIRCASE, STAIR = 0.99, 200


def parameter_groups(net: Network, objective: Objective, lr: float) -> list[dict[str, Any]]:
    """What is trained: new layers at `lr`, and in a group of their own the layers of a backbone at a part of it."""
    if not isinstance(net, BackboneNet):
        return [{"params": [*net.parameters(), *objective.parameters()]}]
    return [
        {"params": [*net.hash.parameters(), *objective.parameters()]},
        {"params": list(net.backbone.parameters()), "lr": lr * net.lr_factor},
    ]


def make_optimizer(groups: Iterable[Any], options: Train, steps: int) -> tuple[Optimizer, LambdaLR]:
    """Optimiser of parameters, or groups of them, and its schedule over all steps; it is stepped once a batch."""
    if options.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, options.lr, options.momentum, weight_decay=options.weight_decay)
    else:
        optimizer = torch.optim.AdamW(groups, options.lr, eps=options.epsilon, weight_decay=options.weight_decay)
    if options.schedule == "staircase":
        return optimizer, LambdaLR(optimizer, lambda step: STAIRCASE ** (step // STAIR))
    return optimizer, LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))


class MeanLosses:
    """Mean over steps of scalars on the training device, from which they are read many steps at a time: to read a
    value is to wait for all that comes before it.
    """

    #: Steps between two reads.
    KEPT = 1000

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._sums: dict[str, float] = {}
        self._steps = 0

    def add(self, values: dict[str, Tensor]) -> None:
        """The values of one step."""
        if not self._steps:
            self._sums = dict.fromkeys(values, 0.0)
        self._steps += 1
        self._kept.append(torch.stack([value.detach() for value in values.values()]))
        if len(self._kept) == self.KEPT:
            self._fold()

    def read(self) -> dict[str, float]:
        """The means."""
        self._fold()
        return {name: total / self._steps for name, total in self._sums.items()}

    def _fold(self) -> None:
        for values in torch.stack(self._kept).tolist() if self._kept else ():
            for name, value in zip(self._sums, values, strict=True):
                self._sums[name] += value
        self._kept.clear()


def train(
    net: Network, data: Batches, objective: Objective, options: Train, seed: int, checkpoint: Path,
    log: Callable[[dict[str, float]], None], ranks: Ranks = ALONE,
) -> None:  # fmt: skip
    """Train `net` in place.

    Args:
        data: what the network is trained on, on the device where the network is.
        checkpoint: a file that training resumes from when it exists. Every random choice depends on (seed, epoch), so
            a resumed training gives the same network as an undisturbed one.
        log: takes the mean losses of each finished epoch, including those before a resume.
        ranks: that train together. The first one reads and writes the checkpoint, which is the same whatever their
            number; so is the network, up to rounding.
    """
    steps = number_of_batches(data.n, options.batch_size)
    ranks.require_enough(data.n // steps)
    groups = parameter_groups(net, objective, options.lr)
    optimizer, schedule = make_optimizer(groups, options, options.epochs * steps)
    history: History = []
    if saved := read_checkpoint(checkpoint, next(net.parameters()).device, ranks):
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        objective.restore(saved["objective"])
        history = saved["history"]
        for losses in history:
            log(losses)
    replica = Replica(net, objective.parameters(), ranks)
    with progress_bar("train", options.epochs) as bar:
        bar.advance(len(history))
        for epoch in range(len(history), options.epochs):
            seed_of_epoch = derived_seed(seed, epoch)
            torch.manual_seed(seed_of_epoch)  # of dropout
            objective.begin_epoch(epoch, lambda: data.all_codes(net))
            means = MeanLosses()
            with closing(data.epoch(objective.views, seed_of_epoch)) as steps_of_epoch:
                for inputs, rows in steps_of_epoch:
                    terms = objective.terms(replica(inputs, len(rows) // max(objective.views, 1)), rows)
                    loss = torch.stack(list(terms.values())).sum()
                    optimizer.zero_grad()
                    replica.backward(loss)
                    optimizer.step()
                    schedule.step()
                    means.add({"loss": loss, **terms})
            losses = means.read()
            if not math.isfinite(losses["loss"]):
                raise InputError(
                    f"train.lr: the loss is {losses['loss']} in epoch {epoch + 1}; set less than {options.lr}"
                )
            history.append({**losses, "learning_rate": schedule.get_last_lr()[0]})
            log(history[-1])
            bar.advance(note=f"loss {losses['loss']:.4f}")
            if (epoch + 1) % options.checkpoint == 0 and ranks.is_first:
                write_checkpoint(checkpoint, {
                    "net": net.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
                    "objective": objective.state(), "history": history,
                })  # fmt: skip
