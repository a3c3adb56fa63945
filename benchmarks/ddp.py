"""One process against two ranks, a core each, that talk by Gloo over the loopback: steps, an E-step, and what is sent.

    python benchmarks/ddp.py                        # about seven minutes

The same batches of the same size, so the ideal is two. The head has the default sizes of ``params.yaml`` on features of
512 dimensions; the backbone is a ResNet-18 on images of 64 and of 224 pixels, made before; the E-step is of codes
of 100,000 images. Time on the clock suffers from what else the machine does, two ranks more than one process, as each
waits for the slower one; the processors' own time does not. Bytes are what a rank hands over in a step; an all-reduce
among W ranks sends 2 (W - 1) / W of them.
Writes ``benchmarks/results/ddp.json`` and ``.md``.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import REPEATS, machine, ratios, report, shown, spread, take_turns
from torch import Tensor
from torch.distributed import TCPStore
from torch.multiprocessing import spawn
from training import LOSSES, new_net, params, write_inputs

from stages.backbone import BackboneConfig, BackboneNet, build_backbone
from stages.components.artifact import read_components
from stages.components.config import Components
from stages.features import Features
from stages.hashnet import Network
from stages.similarity.matrix import read_similarity
from stages.train.batches import Batches, CachedViews, batches
from stages.train.distributed import ALONE, Ranks, current, joined
from stages.train.estep import CodeComponents, e_step
from stages.train.methods.objective import Inputs, Objective
from stages.train.trainer import train

#: Images that the head is trained on, in an epoch of so many steps.
IMAGES, STEPS = 16_384, {128: 128, 1024: 16}
#: Of the backbone: the images of an epoch by their pixels, and the images of a batch.
PICTURES, BATCH = {64: 96, 224: 64}, 32
#: Of the E-step: codes, bits, components.
CODES, BITS, FINE, COARSE = 100_000, 32, 100, 25

#: What two ranks do, or one of them while the other waits.
Work = Callable[[Ranks], None]


class Pictures:
    """Batches of images that are there."""

    def __init__(self, pixels: int, ranks: Ranks) -> None:
        self.ranks = ranks
        self.n = PICTURES[pixels]
        self.images = torch.randint(0, 256, (self.n, 3, pixels, pixels), dtype=torch.uint8)

    def epoch(self, views: int, seed: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        for rows in batches(self.n, BATCH, torch.Generator().manual_seed(seed)):
            yield self.images[rows[self.ranks.part(len(rows))]], rows


def resnet(bits: int, pixels: int) -> BackboneNet:
    torch.manual_seed(0)
    config = BackboneConfig("timm/resnet18", None, 512, bits, "uhscm", pixels, (0.5,) * 3, (0.3,) * 3)
    return BackboneNet(config, build_backbone(config.model, None)).train()


def trainings() -> dict[str, tuple[Work, int, list[int]]]:
    """Of each kind of training an epoch, its steps, and bytes a step: codes, batch normalisation, gradients."""
    kinds = {}
    with Features() as features:
        images, views = torch.from_numpy(features.train()), torch.from_numpy(features.views())
    for method in LOSSES:
        options, _ = params(method)
        objective = LOSSES[method](
            Inputs(images, read_components(), read_similarity()[0], options.train, options.bits, options.seed)
        )
        objective.begin_epoch(0, lambda bits=options.bits: torch.tanh(torch.randn(IMAGES, bits)))
        objective.begin_epoch = lambda epoch, all_codes: None
        shown_views = views if objective.views else images[None]

        def head(ranks: Ranks, size: int, options: Any = options, objective: Objective = objective,
                 stored: Tensor = shown_views) -> None:  # fmt: skip
            section = options.train.model_copy(update={"batch_size": size})
            data = CachedViews(stored, images, size, ranks)
            train(new_net(options), data, objective, section, 0, Path("none"), lambda losses: None, ranks)

        for size in STEPS if method == "dsch" else (128,):
            sent = bytes_of(new_net(options), size * max(objective.views, 1))
            kinds[f"head, {method}, batch {size}"] = (lambda r, s=size, h=head: h(r, s)), STEPS[size], sent
    options, _ = params("uhscm")
    pairs = LOSSES["uhscm"](Inputs(images, read_components(), read_similarity()[0], options.train, options.bits, 0))

    def backbone(pixels: int, ranks: Ranks) -> None:
        section = options.train.model_copy(update={"batch_size": BATCH})
        data: Batches = Pictures(pixels, ranks)
        train(resnet(options.bits, pixels), data, pairs, section, 0, Path("none"), lambda losses: None, ranks)

    for pixels, pictures in PICTURES.items():
        sent = bytes_of(resnet(options.bits, pixels), BATCH)
        kinds[f"ResNet-18, {pixels} pixels, uhscm, batch {BATCH}"] = partial(backbone, pixels), pictures // BATCH, sent
    return kinds


def bytes_of(net: Network, rows: int) -> list[int]:
    """Bytes that a rank of two hands over in a step with so many rows in all."""
    kinds = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    moments = sum(1 + 4 * layer.num_features for layer in net.modules() if isinstance(layer, kinds))
    gradients = sum(parameter.numel() for parameter in net.parameters())
    return [4 * rows // 2 * net.config.bits, 4 * moments, 4 * gradients]


def re_estimation() -> Work:
    """An E-step."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((FINE, BITS))
    codes = np.tanh(centres[rng.integers(0, FINE, CODES)] + 0.7 * rng.standard_normal((CODES, BITS)))
    codes = torch.from_numpy(codes.astype(np.float32))
    fine = (codes @ codes[:FINE].T / 4).softmax(dim=1)
    fine = fine / fine.norm(dim=1, keepdim=True)
    before = CodeComponents(fine, fine[:, :COARSE], fine[0], fine[0, :COARSE], fine[:FINE, :1], fine[:COARSE, :1])
    options = Components(**params("dsch")[1]["components"])
    return lambda ranks: e_step(codes[ranks.part(CODES)], before, options, 0, ranks) and None


def measure(rank: int, place: str, port: int, repeats: int) -> None:
    """What each of the two processes does; the first one writes what it measured."""
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RESTART_COUNT="0",
        TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip
    with chdir(place), joined():
        ranks, found = current(), {}
        kinds = trainings() | {f"E-step, {CODES:,} codes": (re_estimation(), 1, None)}
        for name, (work, steps, sent) in kinds.items():
            used: dict[str, list[float]] = {"alone": [], "together": []}

            def turn(how: str, work: Work = work, used: dict[str, list[float]] = used) -> None:
                ranks.wait()
                before = time.process_time()
                if how == "together" or ranks.is_first:
                    work(ranks if how == "together" else ALONE)
                used[how].append(float(ranks.total(np.array([time.process_time() - before]))[0]))

            times = take_turns({how: partial(turn, how) for how in used}, repeats)
            found[name] = {"bytes": sent} | {
                kind: {**{how: spread([1e3 * one / steps for one in values[how][-repeats:]]) for how in used},
                       "alone / together": ratios(*(values[how][-repeats:] for how in used))}
                for kind, values in (("ms", times), ("processor ms", used))
            }  # fmt: skip
            if ranks.is_first:
                print(name, found[name], flush=True)
        if ranks.is_first:
            Path("found.json").write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        with chdir(place):
            write_inputs(IMAGES)
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun keeps it
        spawn(measure, (place, store.port, arguments.repeats), nprocs=2)
        kinds = json.loads(Path(place, "found.json").read_text(encoding="utf-8"))
    report("ddp", {**machine("torch", "numpy"), "repeats": arguments.repeats, "kinds": kinds}, table_of(kinds))


def table_of(kinds: dict[str, Any]) -> str:
    """The result as Markdown."""
    head = ("ms a step", "one process", "two ranks", "faster", "of processors: one process", "two ranks together")
    lines = [f"| {' | '.join(head)} | codes, kB | batch norm, kB | gradients, kB |", "|---" * (len(head) + 3) + "|"]
    for name, found in kinds.items():
        clock, processors = found["ms"], found["processor ms"]
        cells = [shown(clock["alone"], 1), shown(clock["together"], 1), shown(clock["alone / together"]),
                 shown(processors["alone"], 1), shown(processors["together"], 1)]  # fmt: skip
        cells += [f"{number / 1e3:,.1f}" for number in found["bytes"] or ()] or [""] * 3
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
