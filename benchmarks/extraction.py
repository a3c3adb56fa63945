"""The stage ``extract`` against the encoder alone on ready tensors, what its precision costs, and 60,000 images.

    python benchmarks/extraction.py                                    # on rendered scenes
    python benchmarks/extraction.py --cifar10 ../shared/data/cifar10   # and all of CIFAR-10, with its memory

Two processes decode. Pictures are images and views of images; each kind of work gets the same ones in the same batches.
The weights of ViT-B/32 are random, which costs the same.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from conversion import convert, generate
from harness import REPEATS, machine, peak_memory, ratios, report, shown, take_turns

from stages import workers
from stages.artifacts import CLIP, IMAGES
from stages.clip import CPU_BATCH, Precision, load_clip
from stages.decoding import in_order
from stages.extract.config import Params
from stages.extract.decoding import DecodedSlices, slices_of_pictures
from stages.extract.pixels import encode_row_groups
from stages.images import ImageShards
from stages.params import parse
from stages.weights.config import Clip
from stages.weights.stage import pin_clip

ROOT = Path(__file__).parents[1]
VIEWS = 4


@dataclass(frozen=True)
class Case:
    """One comparison: a model, a precision, images of `size` pixels, and whether views are made of them."""

    model: str
    precision: Precision
    size: int
    images: int
    views: bool
    batch: int

    @property
    def name(self) -> str:
        views = f"{VIEWS} views each" if self.views else "no views"
        return f"{self.model}, {self.precision}, images of {self.size} pixels, {views}"


CASES = (
    Case("ViT-B-32", "float32", 256, 128, False, 32), Case("ViT-B-32", "float32", 256, 26, True, 32),
    Case("ViT-B-32", "bfloat16", 256, 52, True, 32), Case("scenes-clip", "float32", 64, 3000, False, 256),
    Case("scenes-clip", "float32", 64, 600, True, 256),
)  # fmt: skip


def pinned(model: str, place: Path) -> None:
    """Write ``models/clip`` below `place`."""
    checkpoint = "embedded"
    if model != "scenes-clip":
        checkpoint = str(place / "weights.pt")
        torch.manual_seed(0)
        torch.save(open_clip.create_model(model).state_dict(), checkpoint)
    with chdir(place):
        pin_clip(Clip(model=model, pretrained=checkpoint))


def shards(place: Path, case: Case) -> ImageShards:
    """Image shards below `place` of rendered scenes as JPEG, all or none of them for training."""
    source = place / "source"
    source.mkdir(parents=True)
    generate(source, case.images, case.size)
    convert(source, place / "converted", workers.cores())
    directory = place / "images"
    directory.mkdir()
    for file in sorted((place / "converted" / IMAGES).glob("*.parquet")):
        table = pq.read_table(file)
        marks = pa.array(np.full(len(table), case.views))
        table = table.set_column(table.schema.get_field_index("is_train"), "is_train", marks)
        pq.write_table(table, directory / file.name, row_group_size=1000)
    return ImageShards(directory)


def compare(case: Case, place: Path, models: Path, repeats: int) -> dict[str, Any]:
    """Pictures a second of each kind of work, and the ratios that matter, as [median, least, greatest]."""
    clip = load_clip(models / case.model / CLIP, precision=case.precision)
    groups = shards(place, case).row_groups()
    options = {"engine": "local", "views": VIEWS, "batch_size": case.batch, "precision": case.precision, "workers": 2,
               "seed": 0}  # fmt: skip
    params = parse(Params, {"device": "cpu", "extract": options})
    slices = DecodedSlices(slices_of_pictures(groups, VIEWS, case.batch), clip, VIEWS, 0)
    batches = [pictures for pictures, _ in in_order(slices, 2)]
    count = sum(map(len, batches))

    def encode_ready() -> None:
        for pictures in batches:
            clip.encode_images(pictures)

    def decode() -> None:
        for _ in in_order(slices, 2):
            pass

    times = take_turns({
        "encoder alone": encode_ready, "decoding alone": decode,
        "stage": lambda: encode_row_groups(clip, {place / f"{i}.npz": g for i, g in enumerate(groups)}, params),
    }, repeats)  # fmt: skip
    encoder, decoding, stage = times.values()
    both = [a + b for a, b in zip(encoder, decoding, strict=True)]
    return {
        "pictures": count, "batch": case.batch,
        "pictures_per_second": {name: round(count / statistics.median(t), 1) for name, t in times.items()},
        "ratios": {"stage / encoder alone": ratios(encoder, stage), "what two cores allow": ratios(encoder, both)},
    }  # fmt: skip


def plain_model(directory: Path) -> torch.nn.Module:
    """The model as open_clip itself loads it."""
    return open_clip.create_model(f"local-dir:{directory / CLIP}").eval()


def normalised(pictures: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Pictures uint8 (b, h, w, 3) as open_clip's own transform gives them."""
    means, stds = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return ((pictures.permute(0, 3, 1, 2).float() / 255 - means) / stds).contiguous()


def compare_precisions(model: str, models: Path, repeats: int) -> dict[str, Any]:
    """The encoder alone in each of its kinds, as ratios to open_clip in float32, and how far its features are off."""
    exact, rounded = (load_clip(models / model / CLIP, precision=p) for p in ("float32", "bfloat16"))
    plain = plain_model(models / model)
    last = plain_model(models / model)
    last.visual.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (CPU_BATCH, *exact.image_size, 3), dtype=torch.uint8, generator=generator)
    images = normalised(pictures, exact.mean, exact.std)
    images_last = images.contiguous(memory_format=torch.channels_last)

    def unit(encode: Callable[[], torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return torch.nn.functional.normalize(encode().float(), dim=1)

    def autocast() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return plain.encode_image(images)

    kinds = {
        "open_clip, float32": lambda: plain.encode_image(images),
        "the same, channels last": lambda: last.encode_image(images_last),
        "the same, bfloat16 autocast": autocast,
        "encoder, float32": lambda: exact.encode_images(pictures),
        "encoder, bfloat16": lambda: rounded.encode_images(pictures),
    }
    compiling = None
    if model != "scenes-clip":  # which is done before it is compiled
        compiled = torch.compile(exact._model.visual, dynamic=False)
        start = time.perf_counter()
        try:
            unit(lambda: compiled(images_last))
            compiling = time.perf_counter() - start
            kinds["encoder, float32, torch.compile"] = lambda: compiled(images_last)
        except Exception as error:  # of whatever compiler is missing
            compiling = " ".join(str(error).split())[:200]
    expected = unit(kinds["open_clip, float32"])
    cosine = {name: float((unit(encode) * expected).sum(dim=1).min()) for name, encode in kinds.items()}
    times = take_turns({name: lambda encode=encode: unit(encode) for name, encode in kinds.items()}, repeats)
    base = times["open_clip, float32"]
    return {
        "batch": CPU_BATCH, "compiling": compiling, "least_cosine": cosine,
        "pictures_per_second": {name: round(CPU_BATCH / statistics.median(t), 1) for name, t in times.items()},
        "ratios": {name: ratios(base, seconds) for name, seconds in times.items()},
    }  # fmt: skip


def whole(parquet: Path, models: Path, place: Path) -> dict[str, float]:
    """The command ``python -m stages extract`` on all of CIFAR-10 with the model that ships, once."""
    convert(parquet.resolve(), place, workers.cores())
    (place / "models").symlink_to(models / "scenes-clip/models")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    (place / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    is_train = ImageShards(place / IMAGES).columns(["is_train"])["is_train"].to_numpy()
    start = time.perf_counter()
    memory = peak_memory([sys.executable, "-m", "stages", "extract"], place, {"PYTHONPATH": str(ROOT)})
    pictures = len(is_train) + params["extract"]["views"] * int(is_train.sum())
    return {"images": len(is_train), "pictures": pictures, "seconds": time.perf_counter() - start, "memory_mb": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar10", type=Path, help="directory with CIFAR-10 as image Parquet")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        **machine("torch", "open_clip_torch", "pillow", "simplejpeg"), "repeats": arguments.repeats,
        "stage": {}, "precision": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        place, models = Path(directory), Path(directory) / "models"
        names = sorted({case.model for case in CASES})
        for name in names:
            (models / name).mkdir(parents=True)
            pinned(name, models / name)
        if arguments.cifar10:
            result["cifar10"] = whole(arguments.cifar10, models, place / "cifar10")
        for number, case in enumerate(CASES):
            result["stage"][case.name] = compare(case, place / str(number), models, arguments.repeats)
        for name in names:
            result["precision"][name] = compare_precisions(name, models, arguments.repeats)
    report("extraction", result, table_of(result))


def table_of(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    cases = result["stage"]
    kinds = next(iter(cases.values()))["pictures_per_second"]
    lines = ["| pictures a second | " + " | ".join(kinds) + " |", "|---" * (1 + len(kinds)) + "|"]
    for name, case in cases.items():
        rates = [f"{rate:,.0f}" for rate in case["pictures_per_second"].values()]
        lines.append(f"| {name} | " + " | ".join(rates) + " |")
    lines += ["", "| | stage / encoder alone | what two cores allow |", "|---|---|---|"]
    for name, case in cases.items():
        lines.append(f"| {name} | " + " | ".join(map(shown, case["ratios"].values())) + " |")
    precision = result["precision"]
    lines += ["", "| the encoder alone, times as fast as open_clip | " + " | ".join(precision) + " |"]
    lines.append("|---" * (1 + len(precision)) + "|")
    for name in max((p["ratios"] for p in precision.values()), key=len):
        cells = [shown(p["ratios"][name]) if name in p["ratios"] else "" for p in precision.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    cells = [f"{p['least_cosine']['encoder, bfloat16']:.5f}" for p in precision.values()]
    lines.append("| least cosine of bfloat16 and float32 | " + " | ".join(cells) + " |")
    if "cifar10" in result:
        found = result["cifar10"]
        lines += ["", f"All of CIFAR-10 by `python -m stages extract`, {found['images']:,} images and "
                      f"{found['pictures'] - found['images']:,} views: {found['seconds']:.0f} s, peak memory "
                      f"{found['memory_mb']:.0f} MB"]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
