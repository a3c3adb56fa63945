"""The training loop: batches sliced from tensors in memory, checkpoints, one row of losses an epoch."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from stages.artifacts import writing
from stages.device import derived_seed
from stages.errors import InputError
from stages.hashnet import HashNet, relaxed_codes
from stages.progress import progress_bar
from stages.train.config import Train
from stages.train.objectives import Objective

History = list[dict[str, float]]


def batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """A random order of n rows in batches of nearly equal size, so that none is left with a single image."""
    order = torch.randperm(n, generator=generator)
    return iter(order.tensor_split(math.ceil(n / batch_size)))


def make_optimizer(net: HashNet, options: Train, steps: int) -> tuple[Optimizer, LambdaLR]:
    """Optimiser and its cosine schedule from ``lr`` to 0 over all steps."""
    if options.optimizer == "sgd":
        optimizer = torch.optim.SGD(net.parameters(), options.lr, momentum=0.9, weight_decay=options.weight_decay)
    else:
        optimizer = torch.optim.AdamW(net.parameters(), options.lr, weight_decay=options.weight_decay)
    cosine = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    return optimizer, cosine


def train(
    net: HashNet, views: Tensor, images: Tensor, objective: Objective, options: Train, seed: int, checkpoint: Path,
    log: Callable[[dict[str, float]], None],
) -> None:  # fmt: skip
    """Train `net` in place.

    Args:
        views: (V, n, dim) features of the augmented views; images: (n, dim) of the images themselves, on which the
            objective's E-step runs.
        checkpoint: a file that training resumes from when it exists. Every random choice depends on (seed, epoch), so
            a resumed training gives the same network as an undisturbed one.
        log: takes the mean losses of each finished epoch, including those before a resume.
    """
    n_views, n = views.shape[:2]
    steps = math.ceil(n / options.batch_size)
    optimizer, schedule = make_optimizer(net, options, options.epochs * steps)
    history: History = []
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=views.device, weights_only=True)
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
            generator = torch.Generator().manual_seed(derived_seed(seed, epoch))
            objective.begin_epoch(epoch, lambda: relaxed_codes(net, images))
            sums: dict[str, float] = defaultdict(float)
            for rows in batches(n, options.batch_size, generator):
                # Distinct views of each image: the first ones of a random order.
                order = torch.rand(n_views, len(rows), generator=generator).argsort(dim=0)[: objective.views]
                rows, order = rows.to(views.device), order.to(views.device)
                codes = net(views[order, rows].flatten(0, 1))
                terms = objective.terms(codes, rows.repeat(objective.views))
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
