"""The page: how long an answer takes when 50 people search at once, beside the encoder alone.

    python benchmarks/serve.py

On the artifacts of `scenes` in the current directory (`dvc repro`). Visitors upload images over loopback, each the next
one a pause after the last answer; pauses are drawn evenly around their mean. Two encoders: the project's own, and the
same with an untrained ViT-B-32 beside it, so that a batch takes the time of a real CLIP. The visitors are one process
on the same cores.
"""

import argparse
import asyncio
import contextlib
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

# As ``python -m stages`` sets it, before PyTorch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from harness import machine, report

from stages.encoder import Encoder
from stages.images import ImageShards, decode, read_row_group
from stages.search import Searcher
from stages.search.searcher import TOGETHER
from stages.serve.command import bound, run
from stages.serve.config import Page

USERS = 50
#: Mean pause in seconds between an answer and the next question, and how long that is measured.
LOADS = {0.0: 10.0, 2.0: 15.0, 5.0: 20.0}
#: Images that are uploaded, and those that the encoder encodes alone between two loads.
IMAGES, ROUND = 200, 10
#: Seconds after which an answer counts as an error.
PATIENCE = 60.0
ENCODERS = ("scenes-clip", "ViT-B-32")


class Heavier(Encoder):
    """An encoder beside which a ViT-B-32 of 224 pixels looks at each batch, in vain."""

    def encode(self, preprocessed: torch.Tensor, pixels: torch.Tensor | None) -> Any:
        with torch.inference_mode():
            size = (len(preprocessed), 3, 224, 224)
            self.tower.encode_image(torch.zeros(size))
        return super().encode(preprocessed, pixels)


def encoder(name: str) -> Encoder:
    found = Encoder.load()
    if name == "scenes-clip":
        return found
    import open_clip

    heavier = Heavier(found.net, found.clip, found.made_from, found.device)
    object.__setattr__(heavier, "tower", open_clip.create_model("ViT-B-32").eval())
    return heavier


def serve(name: str) -> None:
    """Serve the page with that encoder."""
    searcher = Searcher.open()
    searcher.__dict__["_loaded_encoder"] = encoder(name)
    page = Page(host="127.0.0.1", port=0)
    run(page, searcher, bound(page))


@contextlib.contextmanager
def served(name: str) -> Iterator[int]:
    """The port of a page with that encoder."""
    process = subprocess.Popen([sys.executable, __file__, "--serve", name], stdout=subprocess.PIPE, text=True)
    try:
        yield int(re.match(r"http://127\.0\.0\.1:(\d+) ", process.stdout.readline())[1])
    finally:
        process.terminate()
        process.wait()


def alone(found: Encoder, images: list[bytes], one: list[float], many: list[float]) -> None:
    """Add seconds from the bytes of one image to its code to `one`, and those of an image of the largest batches."""
    for count, repeats, seconds in ((1, ROUND, one), (TOGETHER, 2, many)):
        for repeat in range(repeats + 1):
            some = [images[(repeat * count + place) % len(images)] for place in range(count)]
            start = time.perf_counter()
            found.images([decode(data) for data in some])
            if repeat:  # the first one warms up
                seconds.append((time.perf_counter() - start) / count)


async def visitor(
    number: int, port: int, images: list[bytes], pause: float, until: float, seconds: list[float]
) -> int:  # fmt: skip
    """Search again and again until then; the errors met. `seconds` gets what each answer took."""
    draw, errors = random.Random(number), 0
    await asyncio.sleep(draw.uniform(0, pause))  # they do not come all at once
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        data = draw.choice(images)
        start = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE):
                writer.write(
                    b"POST /search?top=20 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
                    b"Content-Length: %d\r\n\r\n" % len(data) + data
                )
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1]))
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            return errors + 1
        errors += not head.startswith(b"HTTP/1.1 200") or body.count(b"cb-look") != 20
        seconds.append(time.perf_counter() - start)
        if pause:
            await asyncio.sleep(draw.uniform(0.5 * pause, 1.5 * pause))
    writer.close()
    return errors


async def load(port: int, images: list[bytes], users: int, pause: float, duration: float) -> dict[str, float]:
    """What answers take while so many search."""
    seconds: list[float] = []
    start = time.perf_counter()
    errors = await asyncio.gather(
        *(visitor(number, port, images, pause, start + duration, seconds) for number in range(users))
    )  # fmt: skip
    took = time.perf_counter() - start
    return {"answers": len(seconds), "errors": sum(errors), "per_second": len(seconds) / took,
            "median": statistics.median(seconds), "p95": statistics.quantiles(seconds, n=20)[-1]}  # fmt: skip


def measure(name: str, images: list[bytes]) -> dict[str, Any]:
    """All loads of an encoder; between them, what it takes alone, so that what else the machine does meets both."""
    found, loads = encoder(name), {}
    one: list[float] = []
    many: list[float] = []
    with served(name) as port:
        asyncio.run(load(port, images, 4, 0.0, 2.0))  # warms up
        alone(found, images, one, many)
        single = asyncio.run(load(port, images, 1, 0.0, 5.0))
        for pause, duration in LOADS.items():
            alone(found, images, one, many)
            loads[pause] = asyncio.run(load(port, images, USERS, pause, duration))
        alone(found, images, one, many)
    encode, in_batch = statistics.median(one), statistics.median(many)
    return {"encoder": encode, "encoder_in_batch": in_batch, "one_user": single, "users": loads,
            "ratio": {pause: found["median"] / encode for pause, found in loads.items()},
            "limit": USERS * in_batch / encode}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", choices=ENCODERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    images = [data for *_, data in read_row_group(*ImageShards().row_groups()[0])][:IMAGES]
    results = {name: measure(name, images) for name in ENCODERS}
    table = [f"| {USERS} users | {' | '.join(ENCODERS)} |", f"|---|{'---|' * len(ENCODERS)}"]

    def row(what: str, cells: list[str]) -> None:
        table.append(f"| {what} | {' | '.join(cells)} |")

    found = list(results.values())
    row("one image, decoded and encoded alone", [f"{1e3 * one['encoder']:.1f} ms" for one in found])
    row(f"the same, of a batch of {TOGETHER}", [f"{1e3 * one['encoder_in_batch']:.2f} ms" for one in found])
    row("answer to a single user", [f"{1e3 * one['one_user']['median']:.1f} ms" for one in found])
    for pause in LOADS:
        words = f"a pause of {pause:g} s" if pause else "no pause"
        loads = [one["users"][pause] for one in found]
        row(f"{words}: answers a second", [f"{one['per_second']:.0f}" for one in loads])
        row(f"{words}: errors", [str(one["errors"]) for one in loads])
        row(f"{words}: median (95th percentile)",
            [f"{1e3 * one['median']:.0f} ({1e3 * one['p95']:.0f}) ms" for one in loads])  # fmt: skip
        row(f"{words}: median / encoder alone", [f"**{one['ratio'][pause]:.1f}**" for one in found])
    row("least that ratio can be without a pause", [f"{one['limit']:.1f}" for one in found])
    report("serve", {**machine("gradio", "torch", "uvicorn"), "results": results}, "\n".join(table))


if __name__ == "__main__":
    main()
