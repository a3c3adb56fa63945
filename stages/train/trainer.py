"""The training loop, of a head and of a whole backbone: batches, checkpoints, one row of losses an epoch."""

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from stages.artifacts import writing
from stages.backbone import BackboneNet
from stages.device import derived_seed
from stages.errors import InputError
from stages.hashnet import Network, relaxed_codes
from stages.progress import progress_bar
from stages.train.config import Train
from stages.train.methods.objective import Objective

History = list[dict[str, float]]

#: DSCH's released code multiplies the learning rate by the one every so many steps.
STAIRCASE, STAIR = 0.99, 200


class Batches(Protocol):
    """The n training images, as the network takes them."""

    n: int

    def epoch(self, views: int, seed: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        """All images once, in a random order: for each batch of b, `views` augmented views of each, (views * b, ...),
        and the rows of the images, (views * b,), view by view. What is drawn depends on `seed` alone. 0 views are the
        images themselves; of pixels it is a single view, since a backbone would learn them by heart.
        """

    def all_codes(self, net: Network) -> Tensor:
        """Relaxed codes (n, K) of the unaugmented images, on the training device."""


class CachedViews:
    """Batches of cached features.

    Attributes:
        views: (V, n, dim) of the augmented views; images: (n, dim) of the images themselves.
    """

    def __init__(self, views: Tensor, images: Tensor, batch_size: int) -> None:
        self.views, self.images, self.batch_size = views, images, batch_size
        self.n = len(images)

    def epoch(self, views: int, seed: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        generator = torch.Generator().manual_seed(seed)
        for rows in batches(self.n, self.batch_size, generator):
            if not views:
                rows = rows.to(self.images.device)
                yield self.images[rows], rows
                continue
            # Distinct views of each image: the first ones of a random order.
            order = torch.rand(len(self.views), len(rows), generator=generator).argsort(dim=0)[:views]
            rows, order = rows.to(self.views.device), order.to(self.views.device)
            yield self.views[order, rows].flatten(0, 1), rows.repeat(views)

    def all_codes(self, net: Network) -> Tensor:
        return relaxed_codes(net, self.images)


def batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """A random order of n rows in batches of nearly equal size, so that none is left with a single image."""
    order = torch.randperm(n, generator=generator)
    return iter(order.tensor_split(math.ceil(n / batch_size)))


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


def train(
    net: Network, data: Batches, objective: Objective, options: Train, seed: int, checkpoint: Path,
    log: Callable[[dict[str, float]], None],
) -> None:  # fmt: skip
    """Train `net` in place.

    Args:
        data: what the network is trained on, on the device where the network is.
        checkpoint: a file that training resumes from when it exists. Every random choice depends on (seed, epoch), so
            a resumed training gives the same network as an undisturbed one.
        log: takes the mean losses of each finished epoch, including those before a resume.
    """
    steps = math.ceil(data.n / options.batch_size)
    groups = parameter_groups(net, objective, options.lr)
    optimizer, schedule = make_optimizer(groups, options, options.epochs * steps)
    history: History = []
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=next(net.parameters()).device, weights_only=True)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        objective.restore(saved["objective"])
        history = saved["history"]
        for losses in history:
            log(losses)
    with progress_bar("train", options.epochs) as bar:
        bar.advance(len(history))
        for epoch in range(len(history), options.epochs):
            seed_of_epoch = derived_seed(seed, epoch)
            torch.manual_seed(seed_of_epoch)  # of dropout
            objective.begin_epoch(epoch, lambda: data.all_codes(net))
            sums: dict[str, float] = defaultdict(float)
            with closing(data.epoch(objective.views, seed_of_epoch)) as steps_of_epoch:
                for inputs, rows in steps_of_epoch:
                    terms = objective.terms(net(inputs), rows)
                    loss = torch.stack(list(terms.values())).sum()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    for name, value in {"loss": loss, **terms}.items():
                        sums[name] += value.item()
            losses = {name: total / steps for name, total in sums.items()}
            if not math.isfinite(losses["loss"]):
                raise InputError(
                    f"train.lr: the loss is {losses['loss']} in epoch {epoch + 1}; set less than {options.lr}"
                )
            history.append({**losses, "learning_rate": schedule.get_last_lr()[0]})
            log(history[-1])
            bar.advance(note=f"loss {losses['loss']:.4f}")
            if (epoch + 1) % options.checkpoint == 0:
                with writing(checkpoint) as target:
                    torch.save({
                        "net": net.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
                        "objective": objective.state(), "history": history,
                    }, target)  # fmt: skip
