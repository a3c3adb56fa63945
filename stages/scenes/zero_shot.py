"""How well a model finds the categories of held-out scenes by prompts alone.

python -m stages.scenes.zero_shot --count 3000
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from stages.scenes.catalogue import CATEGORIES, SHOWN
from stages.scenes.model import WEIGHTS, Preprocess, Tokenizer, load_clip
from stages.scenes.render import render_scene

PROMPT = "a photo of the {category}"
#: Series of scenes that no training series (see train_clip) can coincide with.
HELD_OUT_SEED = 777
BATCH = 250


class ZeroShot(NamedTuple):
    """`top1`: share of scenes whose best concept is shown; mean average precisions by cosine and by softmax."""

    top1: float
    map_cosine: float
    map_softmax: float
    ap_cosine: dict[str, float]


@torch.no_grad()
def measure(
    model: torch.nn.Module,
    preprocess: Preprocess,
    tokenizer: Tokenizer,
    count: int,
    categories: Sequence[str],
    seed: int = HELD_OUT_SEED,
    concepts: Sequence[str] = CATEGORIES,
) -> ZeroShot:
    """Score `count` scenes of `categories` against the prompts of all `concepts`.

    An average precision ranks the scenes by one concept: by the cosine of image and prompt, or by the concept's share
    in the softmax over all concepts at the model's own temperature.
    """
    scenes = [render_scene(seed, index, categories) for index in range(count)]
    images = torch.stack([preprocess(Image.fromarray(scene.pixels)) for scene in scenes])
    encoded = torch.cat([model.encode_image(part, normalize=True) for part in images.split(BATCH)])
    prompts = model.encode_text(tokenizer([PROMPT.format(category=name) for name in concepts]), normalize=True)
    cosine = encoded @ prompts.T
    softmax = (cosine * model.logit_scale.exp()).softmax(dim=1).numpy()
    truth = np.array([[name in scene.labels for name in concepts] for scene in scenes])
    present = [i for i in range(len(concepts)) if truth[:, i].any()]
    ap = {concepts[i]: float(average_precision_score(truth[:, i], cosine[:, i].numpy())) for i in present}
    ap_softmax = [float(average_precision_score(truth[:, i], softmax[:, i])) for i in present]
    top = cosine.argmax(dim=1).numpy()
    return ZeroShot(
        top1=float(truth[np.arange(count), top].mean()),
        map_cosine=float(np.mean(list(ap.values()))),
        map_softmax=float(np.mean(ap_softmax)),
        ap_cosine=ap,
    )


def report(model: torch.nn.Module, preprocess: Preprocess, tokenizer: Tokenizer, count: int) -> None:
    """Print the figures on `count` held-out scenes of all and of the shown categories."""
    for kind, categories in (("all", CATEGORIES), ("shown", SHOWN)):
        found = measure(model, preprocess, tokenizer, count, categories)
        hardest = sorted(found.ap_cosine.items(), key=lambda item: item[1])[:4]
        print(
            f"  scenes of {kind:5s}: top-1 {found.top1:.3f}  mAP {found.map_cosine:.3f} (cosine)"
            f" {found.map_softmax:.3f} (softmax)  hardest "
            + ", ".join(f"{name} {value:.2f}" for name, value in hardest),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000, help="held-out scenes to measure on")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    report(*load_clip(arguments.weights), arguments.count)


if __name__ == "__main__":
    main()
