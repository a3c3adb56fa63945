"""Conversion and reading against a bare PIL loop over the same bytes, and the memory of the conversion.

    python benchmarks/conversion.py                    # on generated images
    python benchmarks/conversion.py PARQUET_DIR ...    # on image Parquet, each directory by itself

Medians over the repetitions, after a warm-up. Writes ``benchmarks/results/conversion.json`` and ``.md``.
"""

import argparse
import io
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from harness import REPEATS, machine, peak_memory, ratios, report, shown, take_turns
from PIL import Image

from stages.artifacts import IMAGES
from stages.download.config import Params
from stages.download.stage import run
from stages.images import ImageShards, decode, read_row_group
from stages.params import parse
from stages.scenes.render import render_scene

PARAMS = Path(__file__).parents[1] / "params.yaml"

#: Images in the two measurements of memory.
COUNTS = (60_000, 240_000)


def generate(directory: Path, count: int, size: int) -> None:
    """Write `count` rendered scenes of `size` pixels as JPEG in image Parquet."""
    rows = []
    for index in range(count):
        coded = io.BytesIO()
        scene = Image.fromarray(render_scene(0, index % 2000).pixels).resize((size, size), Image.Resampling.BICUBIC)
        scene.save(coded, "JPEG", quality=75 + index % 20)
        rows.append({"bytes": coded.getvalue(), "path": f"{index}.jpg"})
    table = pa.table({"image": rows, "label": [index % 10 for index in range(count)]})
    pq.write_table(table, directory / "train-00000-of-00001.parquet", row_group_size=1000)


def repeated(source: Path, target: Path, count: int) -> None:
    """Link the files of `source` into `target` so often that there are `count` images or more."""
    target.mkdir()
    files = sorted(source.glob("*.parquet"))
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    for copy in range(-(-count // rows)):
        for file in files:
            (target / f"{copy:03d}-{file.name}").symlink_to(file.resolve())


def encoded_images(directory: Path) -> list[bytes]:
    tables = [pq.read_table(file, columns=["image"]) for file in sorted(directory.glob("*.parquet"))]
    return [image for table in tables for image in table["image"].combine_chunks().field("bytes").to_pylist()]


def bare(images: list[bytes]) -> None:
    """What everybody writes."""
    for data in images:
        Image.open(io.BytesIO(data)).convert("RGB")


def bare_in_two(images: list[bytes]) -> None:
    """The same by two processes (forked, so that they need not be sent the images): what the machine has to give."""
    in_two(bare, [(images[half::2],) for half in (0, 1)], "fork")


def in_two(work: Callable[..., None], arguments: list[tuple], start: str) -> None:
    processes = [multiprocessing.get_context(start).Process(target=work, args=some) for some in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def convert(source: Path, place: Path, workers: int) -> None:
    """The whole stage ``download``, into a directory that is not there yet."""
    place.mkdir()
    options = {"name": "parquet", "path": str(source), "protocol": "holdout", "max_skipped": 0.0, "workers": workers}
    with chdir(place):
        run(parse(Params, {"dataset": options}))


def read(place: Path, part: slice = slice(None)) -> None:
    """Decode what the conversion has written, as the extraction does."""
    for file, group in ImageShards(place / IMAGES).row_groups()[part]:
        for _, _, data in read_row_group(file, group):
            decode(data)


def read_in_two(place: Path) -> None:
    in_two(read, [(place, slice(half, None, 2)) for half in (0, 1)], "spawn")  # Arrow has threads


def seconds_an_image(source: Path) -> float:
    """What the bare loop takes."""
    images = encoded_images(source)
    start = time.perf_counter()
    bare(images)
    return (time.perf_counter() - start) / len(images)


def measure_speed(source: Path, repeats: int) -> dict[str, Any]:
    """Images a second of each kind of work, and the ratios that matter, as [median, least, greatest]."""
    images = encoded_images(source)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "run"
        clear = partial(shutil.rmtree, place, ignore_errors=True)  # removing a GB is no part of writing one
        kinds = {
            "bare PIL loop": lambda: bare(images),
            "bare PIL loop, two processes": lambda: bare_in_two(images),
            "conversion, one worker": lambda: convert(source, place, 1),
            "conversion, two workers": lambda: convert(source, place, 2),
            "reading": lambda: read(place),
            "reading, two processes": lambda: read_in_two(place),
        }
        times = take_turns(kinds, repeats, before={name: clear for name in kinds if name.startswith("conversion")})
    loop, loops, one, two, reading, readings = times.values()
    return {
        "images": len(images), "mean_bytes": round(sum(map(len, images)) / len(images)),
        "images_per_second": {name: round(len(images) / statistics.median(t)) for name, t in times.items()},
        "ratios": {
            "conversion / bare loop": ratios(loop, one), "reading / bare loop": ratios(loop, reading),
            "conversion: two workers / one": ratios(one, two),
            "reading: two processes / one": ratios(reading, readings),
            "bare loop: two processes / one": ratios(loop, loops),
        },
    }  # fmt: skip


def measure_memory(source: Path, count: int) -> float:
    """Peak memory in MB (proportional set size, all processes) of converting the images of `source`, repeated."""
    with tempfile.TemporaryDirectory() as directory:
        images = Path(directory) / "images"
        repeated(source, images, count)
        params = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
        params["dataset"] |= {"name": "parquet", "path": str(images), "protocol": "holdout", "workers": 2}
        with tempfile.TemporaryDirectory() as place:
            Path(place, "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
            command = [sys.executable, "-m", "stages", "download"]
            return peak_memory(command, Path(place), {"PYTHONPATH": str(PARAMS.parent)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parquet", nargs="*", type=Path, help="directories of image Parquet")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the bare loop takes; images are repeated")
    parser.add_argument("--no-memory", action="store_true", help="leave the measurement of memory out")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        **machine("numpy", "pillow", "pyarrow", "simplejpeg"), "repeats": arguments.repeats, "speed": {},
        "memory_mb": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        sources = list(arguments.parquet)
        if not sources:
            for name, count, size in (("photographs", 3000, 256), ("thumbnails", 30_000, 32)):
                sources.append(Path(directory) / name)
                sources[-1].mkdir()
                generate(sources[-1], count, size)
        for source in sources:
            many = Path(directory) / f"many-{source.name}"
            repeated(source, many, round(arguments.seconds / seconds_an_image(source)))
            result["speed"][source.name] = measure_speed(many, arguments.repeats)
        if not arguments.no_memory:
            smallest = min(sources, key=lambda source: result["speed"][source.name]["mean_bytes"])
            result["memory_mb"] = {f"{count:,} images": measure_memory(smallest, count) for count in COUNTS}
    report("conversion", result, table_of(result))


def table_of(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["| | " + " | ".join(result["speed"]) + " |", "|---" * (1 + len(result["speed"])) + "|"]
    sets = list(result["speed"].values())
    lines.append("| images, mean bytes | " + " | ".join(f"{s['images']:,}, {s['mean_bytes']:,}" for s in sets) + " |")
    for name in sets[0]["images_per_second"]:
        lines.append(f"| {name} | " + " | ".join(f"{s['images_per_second'][name]:,} images/s" for s in sets) + " |")
    for name in sets[0]["ratios"]:
        cells = [shown(s["ratios"][name]) for s in sets]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [f"\nPeak memory, {name}: {peak:.0f} MB" for name, peak in result["memory_mb"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
