"""CIFAR-10 and CIFAR-100 from the official archives: batches of images as Python 2 pickles in a tar.gz."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from stages.download.archives import open_members
from stages.download.config import DatasetOptions
from stages.download.datasets.cifar_batches import read_batch
from stages.download.fetch import Published, fetch
from stages.download.source import Record, Source, encoded
from stages.errors import InputError

#: The official page, and where it forwards to.
HOSTS = ("https://www.cs.toronto.edu/~kriz", "https://cave.cs.toronto.edu/kriz")

CIFAR10 = Published(
    urls=tuple(f"{host}/cifar-10-python.tar.gz" for host in HOSTS),
    digest="sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    max_bytes=170_498_071,
)
CIFAR100 = Published(
    urls=tuple(f"{host}/cifar-100-python.tar.gz" for host in HOSTS),
    digest="sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    max_bytes=169_001_437,
)
#: Images in either of them.
N_IMAGES = 60_000
#: More than the largest batch, CIFAR-100's training set of 155,249,918 bytes.
MAX_BATCH = 160 * 2**20

CLASSES10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

CLASSES100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)  # fmt: skip

#: Members with images, and the split that they are.
BATCHES10 = {f"cifar-10-batches-py/data_batch_{number}": "train" for number in range(1, 6)} | {
    "cifar-10-batches-py/test_batch": "test"
}
BATCHES100 = {"cifar-100-python/train": "train", "cifar-100-python/test": "test"}


def cifar10(options: DatasetOptions) -> Source:
    """The official CIFAR-10, fetched if need be.

    Raises:
        InputError: the archive is not the official one.
        OutsideError: it cannot be fetched.
    """
    return _open(options, CIFAR10, BATCHES10, b"labels", CLASSES10)


def cifar100(options: DatasetOptions) -> Source:
    """The official CIFAR-100 with its 100 fine labels, fetched if need be; raises as :func:`cifar10`."""
    return _open(options, CIFAR100, BATCHES100, b"fine_labels", CLASSES100)


def _open(
    options: DatasetOptions, published: Published, batches: Mapping[str, str], key: bytes, classes: tuple[str, ...]
) -> Source:
    archive = fetch(published, options.mirrors)
    return Source(
        name=options.name,
        class_names=classes,
        licence="none stated; cite Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        source=published.urls[0],
        size=N_IMAGES,
        records=partial(_records, archive.path, batches, key, len(classes)),
        digests={published.name: archive.sha256},
    )


def _records(archive: Path, batches: Mapping[str, str], key: bytes, n_classes: int, start: int) -> Iterator[Record]:
    missing = set(batches)
    number = 0
    for member, stream in open_members(archive, batches, MAX_BATCH):
        missing.remove(member)
        pixels, labels, names = read_batch(stream, key, n_classes, f"{archive}, member '{member}'")
        skip = min(max(start - number, 0), len(labels))
        number += len(labels)
        for image, label, name in zip(pixels[skip:], labels[skip:], names[skip:], strict=True):
            yield encoded(image, name, (label,), batches[member])
    if missing:
        raise InputError(f"{archive}: lacks {', '.join(sorted(missing))}; get the official archive")
