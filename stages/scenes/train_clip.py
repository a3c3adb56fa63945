r"""Train the small model from scratch on endless captioned scenes of all categories.

    python -m stages.scenes.train_clip --pairs 300000 --seed 0 --threads 1 \
        --out stages/scenes/clip/scenes-clip.safetensors

One worker process renders while this one trains. The state is saved beside `--out` at intervals, and a run that finds
the state of an interrupted one continues it.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset

from stages.scenes.captions import BEGINNINGS, PLACES, caption
from stages.scenes.catalogue import CATEGORIES
from stages.scenes.model import Preprocess, Tokenizer, load_clip
from stages.scenes.render import render_scene
from stages.scenes.zero_shot import report

#: Added to the seed, so that no small seed a data set is rendered with repeats the scenes trained on.
TRAIN_SERIES = 1_000_000
BATCH = 128
WARM_UP = 100
WEIGHT_DECAY = 0.02
MAX_SCALE = math.log(100.0)
SAVE_EVERY = 400
LOG_EVERY = 50
HELD_OUT = 1000

#: One batch: images (B, 3, 64, 64) float32, tokens (U, context) of the distinct captions, and of each image which (B,).
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Pairs(IterableDataset[Batch]):
    """The batches `first` to `last` - 1 of the series `seed`; any of them can be made alone."""

    def __init__(self, seed: int, first: int, last: int, preprocess: Preprocess, tokenizer: Tokenizer) -> None:
        self.seed, self.first, self.last = seed + TRAIN_SERIES, first, last
        self.tokenizer = tokenizer
        # The transform's own normalisation; its resizing leaves images of the model's size as they are.
        normalize = next(step for step in preprocess.transforms if hasattr(step, "std"))
        self.mean = torch.tensor(normalize.mean).view(1, 3, 1, 1)
        self.std = torch.tensor(normalize.std).view(1, 3, 1, 1)

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.first, self.last):
            rng = np.random.default_rng([self.seed, step, BATCH])
            scenes = [render_scene(self.seed, step * BATCH + i, CATEGORIES) for i in range(BATCH)]
            pixels = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).permute(0, 3, 1, 2)
            captions = [caption(rng, scene.labels, scene.background) for scene in scenes]
            texts, which = np.unique(captions, return_inverse=True)
            yield (pixels / 255.0 - self.mean) / self.std, self.tokenizer(texts.tolist()), torch.from_numpy(which)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then one cosine down to zero."""
    if step < WARM_UP:
        return peak * (step + 1) / WARM_UP
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


def make_optimizer(model: torch.nn.Module, peak: float) -> torch.optim.AdamW:
    """AdamW without decay on gains, biases and the temperature."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), eps=1e-6, foreach=True)


def used_tokens(tokenizer: Tokenizer) -> torch.Tensor:
    """The ids a caption can hold, sorted."""
    texts = [f"{beginning} the {name}, a {name} and an {name}" for beginning in BEGINNINGS for name in CATEGORIES]
    return tokenizer([*texts, *PLACES.values()]).unique()


def export(model: torch.nn.Module, tokenizer: Tokenizer, out: Path) -> None:
    """Write the weights in half precision, the embeddings of tokens no caption holds as zeros (they compress away)."""
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    kept = used_tokens(tokenizer)
    embedding = torch.zeros_like(weights["token_embedding.weight"])
    embedding[kept] = weights["token_embedding.weight"][kept]
    weights["token_embedding.weight"] = embedding
    halves = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous() for name, tensor in weights.items()
    }
    beside = out.with_name(f"{out.name}.part")
    save_file(halves, beside)
    beside.chmod(0o644)  # safetensors writes for the owner alone
    beside.replace(out)


def train(pairs: int, seed: int, out: Path, peak: float) -> None:
    """Train on `pairs` image-caption pairs and write the weights to `out`."""
    torch.manual_seed(seed)
    model, preprocess, tokenizer = load_clip(weights=None)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(model, peak)
    steps = math.ceil(pairs / BATCH)
    state_path = out.with_name(f"{out.name}.state.pt")
    first, spent = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path)
        if (state["seed"], state["steps"], state["peak"]) != (seed, steps, peak):
            raise SystemExit(f"{state_path} belongs to a run with other settings; remove it to start anew")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent = state["step"], state["spent"]
    loader = DataLoader(
        Pairs(seed, first, steps, preprocess, tokenizer), batch_size=None, num_workers=1, prefetch_factor=8
    )
    criterion = ClipLoss()
    mean_loss = 0.0
    begun = time.monotonic() - spent
    for step, (images, tokens, which) in enumerate(loader, start=first):
        rate = learning_rate(step, steps, peak)
        for group in optimizer.param_groups:
            group["lr"] = rate
        image_features = model.encode_image(images.contiguous(memory_format=torch.channels_last), normalize=True)
        text_features = model.encode_text(tokens, normalize=True)[which]
        loss = criterion(image_features, text_features, model.logit_scale.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, MAX_SCALE)
        mean_loss += loss.item() / LOG_EVERY
        done = step + 1
        if done % LOG_EVERY == 0:
            elapsed = time.monotonic() - begun
            print(
                f"{done * BATCH:8d} pairs  loss {mean_loss:.3f}  scale {model.logit_scale.exp().item():.1f}"
                f"  rate {rate:.1e}  {elapsed:.0f} s  {done * BATCH / elapsed:.0f} pairs/s",
                flush=True,
            )
            mean_loss = 0.0
        if done % SAVE_EVERY == 0 or done == steps:
            report(model.eval(), preprocess, tokenizer, HELD_OUT)
            model.train()
            part = state_path.with_name(f"{state_path.name}.part")
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": done,
                    "seed": seed,
                    "steps": steps,
                    "peak": peak,
                    "spent": time.monotonic() - begun,
                },
                part,
            )
            part.replace(state_path)
    export(model, tokenizer, out)
    state_path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, required=True, help="image-caption pairs to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="weights file (.safetensors) to write")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=2, help="threads of the training process")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.pairs, arguments.seed, arguments.out, arguments.rate)


if __name__ == "__main__":
    main()
