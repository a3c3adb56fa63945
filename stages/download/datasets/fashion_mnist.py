"""Fashion-MNIST from the official files: grey images of 28x28 pixels."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.download.config import DatasetOptions
from stages.download.datasets.idx import damaged, read_idx
from stages.download.fetch import Published, fetch
from stages.download.source import Record, Source, encoded

#: The official place, and the repository of its authors.
HOSTS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
)

FILES: Mapping[str, Published] = {
    name: Published(tuple(f"{host}/{name}" for host in HOSTS), f"sha256:{digest}", size)
    for name, size, digest in (
        ("train-images-idx3-ubyte.gz", 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        ("train-labels-idx1-ubyte.gz", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3-ubyte.gz", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1-ubyte.gz", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    )
}  # fmt: skip

#: What the files call the two splits: the split here, and how many images it has.
SPLITS = {"train": ("train", 60_000), "t10k": ("test", 10_000)}

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class _Part(NamedTuple):
    """The two files of one split, what they call it, what it is called here, and its size."""

    images: Path
    labels: Path
    kind: str
    split: str
    size: int


def fashion_mnist(options: DatasetOptions) -> Source:
    """The official Fashion-MNIST, fetched if need be.

    Raises:
        InputError: a file is not the official one.
        OutsideError: one cannot be fetched.
    """
    fetched = {name: fetch(file, options.mirrors) for name, file in FILES.items()}
    parts = [
        _Part(fetched[f"{kind}-images-idx3-ubyte.gz"].path, fetched[f"{kind}-labels-idx1-ubyte.gz"].path, kind, *facts)
        for kind, facts in SPLITS.items()
    ]
    return Source(
        name=options.name,
        class_names=CLASSES,
        licence="MIT",
        source="https://github.com/zalandoresearch/fashion-mnist",
        size=sum(part.size for part in parts),
        records=partial(_records, parts),
        digests={name: file.sha256 for name, file in fetched.items()},
    )


def _records(parts: Sequence[_Part], start: int) -> Iterator[Record]:
    for part in parts:
        if start < part.size:
            yield from _part_records(part, start)
        start = max(0, start - part.size)


def _part_records(part: _Part, start: int) -> Iterator[Record]:
    labels = np.concatenate(list(read_idx(part.labels, (part.size,))))
    if labels.max() >= len(CLASSES):
        raise damaged(part.labels, f"has label {labels.max()}, expected 0 to {len(CLASSES) - 1}")
    images = chain.from_iterable(read_idx(part.images, (part.size, 28, 28), start))
    for number, pixels in enumerate(images, start):
        yield encoded(pixels, f"{part.kind}-{number:05d}.png", (int(labels[number]),), part.split)
