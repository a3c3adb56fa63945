"""A small copy of NUS-WIDE in exactly the official layout: lists with backslashes and CRLF, one file a concept."""

from collections.abc import Mapping
from pathlib import Path

#: Name of each listed image to its concepts; the third is a training image, the others but the last are test images.
LISTED: Mapping[str, tuple[str, ...]] = {
    "actor\\0001_2124494179.jpg": ("person",),
    "actor\\0002_174174086.jpg": ("person", "sky", "mountain"),
    "actor\\0004_2124494180.jpg": ("zebra", "sky"),
    "zoos\\0001_11.jpg": ("zebra",),
    "zoos\\0002_12.jpg": (),
    "zoos\\0003_13.jpg": ("lake", "tree"),
}
TRAIN = ("actor\\0004_2124494180.jpg", "zoos\\0001_11.jpg")


def write_list(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\r\n" for line in lines).encode("latin-1"))


def write_lists(root: Path, concepts: tuple[str, ...], listed: Mapping[str, tuple[str, ...]] = LISTED) -> Path:
    """The lists as ImageList.zip and Groundtruth.zip unpack."""
    test = [name for name in listed if name not in TRAIN]
    for half, names in (("", list(listed)), ("Train", list(TRAIN)), ("Test", test)):
        # The lists of the halves have the place on their authors' disk in front.
        front = "C:\\ImageData\\Flickr\\" if half else ""
        write_list(root / "ImageList" / f"{half}Imagelist.txt", [front + name for name in names])
        for concept in concepts:
            folder, end = ("TrainTestLabels", f"_{half}") if half else ("AllLabels", "")
            path = root / "Groundtruth" / folder / f"Labels_{concept}{end}.txt"
            write_list(path, [str(int(concept in listed[name])) for name in names])
    write_list(root / "ConceptsList" / "Concepts81.txt", list(concepts))
    return root


def write_images(folder: Path, images: Mapping[str, bytes]) -> None:
    """Images under their listed names."""
    for name, data in images.items():
        path = folder / name.replace("\\", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
