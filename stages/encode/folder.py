"""``python -m stages encode --folder``: codes of image files by a trained network; worker processes decode them."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np

from stages.artifacts import Provenance
from stages.codes import pack
from stages.decoding import Items, in_order, naming_lost_workers
from stages.download.files import EXTENSIONS, find_files, text
from stages.encoder import Encoder, Preparation, Prepared, stacked
from stages.errors import InputError
from stages.image_files import read_bytes
from stages.images import decode, thumbnail
from stages.index.export import require_kind, write_encoded
from stages.params import parse, read_params_file
from stages.publish import published
from stages.workers import cores

#: Images that are decoded and encoded at a time.
BATCH = 64
#: Files that were skipped and are named; the others are counted.
NAMED = 5


@dataclass(frozen=True)
class Batch:
    """Some encoded files.

    Attributes:
        names: paths as text; codes: packed, uint8 (b, bits / 8).
        features: float32 (b, d), None of a network that does without; thumbnails: where they are asked for.
        skipped: path and reason of those that could not be read.
    """

    names: list[str]
    codes: np.ndarray
    features: np.ndarray | None
    thumbnails: list[bytes]
    skipped: list[tuple[str, str]]


class DecodedFiles(Items):
    """Item i: the names of the i-th batch of files, prepared for both models (or None), thumbnails, and what failed."""

    def __init__(self, paths: Sequence[Path], prepare: Preparation, pixels: int | None) -> None:
        self.paths, self.prepare, self.pixels = paths, prepare, pixels

    def __len__(self) -> int:
        return -(-len(self.paths) // BATCH)

    def item(self, index: int) -> tuple[list[str], Prepared, list[bytes], list[tuple[str, str]]]:
        names, prepared, thumbnails, skipped = [], [], [], []
        for path in self.paths[index * BATCH : (index + 1) * BATCH]:
            data, problem = read_bytes(path)
            try:
                if problem:
                    raise ValueError(problem)
                prepared.append(self.prepare(decode(data)))
                if self.pixels is not None:
                    thumbnails.append(thumbnail(data, self.pixels))
            except ValueError as error:
                skipped.append((text(str(path)), " ".join(str(error).split())))
            else:
                names.append(text(str(path)))
        return names, stacked(prepared), thumbnails, skipped


def encode_files(
    encoder: Encoder, paths: Sequence[Path], workers: int, thumbnails: int | None = None
) -> Iterator[Batch]:
    """Encode image files, batch by batch and in order; those that cannot be read are skipped.

    Args:
        workers: processes that decode; 0 decodes in this one.
        thumbnails: pixels of the thumbnails' longer side; None for none.

    Raises:
        InputError: a process that decodes was killed.
    """
    items = DecodedFiles(paths, encoder.prepare, thumbnails)
    advice = "encode: free some memory and run it again"
    with naming_lost_workers(advice), closing(
        in_order(items, workers, "encode", yielding=encoder.device.type == "cpu")
    ) as made:
        for names, (preprocessed, pixels), small, skipped in made:
            features, codes = None, np.empty((0, encoder.bits // 8), np.uint8)
            if names:
                features, relaxed = encoder.encode(preprocessed, pixels)
                codes = pack(relaxed)
            yield Batch(names, codes, features, small, skipped)


def files_of(folder: str) -> list[Path]:
    """The image files in a folder and below it, by name; ``-``: those whose paths standard input has, a line each.

    Raises:
        InputError: there is none.
    """
    if folder == "-":
        lines = sys.stdin.buffer.read().splitlines()
        paths = [Path(line.decode("utf-8", "surrogateescape")) for line in lines if line.strip()]
        if not paths:
            raise InputError("encode: standard input is empty; give the path of an image file a line")
        return paths
    if not Path(folder).is_dir():
        raise InputError(f"--folder {text(folder)}: is no folder; name one with images, or - to read paths")
    try:
        return find_files(folder, tuple(EXTENSIONS), "image files")[0]
    except InputError:
        raise InputError(f"--folder {text(folder)}: no image files there; name a folder with some") from None


def encode(folder: str | None, output: Path | None, model: str | Path | None) -> None:
    """Encode image files and write their paths and codes; say on standard error what was skipped.

    Args:
        folder: as of :func:`files_of`.
        output: as of :func:`stages.index.export.write_encoded`.
        model: a published network, see :func:`stages.publish.published`; None: that of the current directory.

    Raises:
        InputError: an argument is missing or of no use, nothing can be read, or a model is missing or damaged.
    """
    if folder is None or output is None:
        raise InputError("encode: give both --folder DIR (or - for paths from standard input) and --output FILE")
    require_kind(output)
    paths = files_of(folder)
    encoder = Encoder.load(Path() if model is None else published(model), _device(model))
    batches = list(encode_files(encoder, paths, 0 if len(paths) <= BATCH else cores()))
    names = [name for batch in batches for name in batch.names]
    skipped = report_skipped(batches, sys.stderr)
    if not names:
        raise InputError(f"--folder {text(folder)}: none of {len(paths):,} files can be read as an image")
    made: Provenance = replace(encoder.made_from, stage="encode", dataset="")
    write_encoded(output, names, np.concatenate([batch.codes for batch in batches]), encoder.net.config.method, made)
    left_out = f", {skipped:,} files skipped" if skipped else ""
    print(f"{len(names):,} codes of {encoder.bits} bits in {output}{left_out}")


def report_skipped(batches: Sequence[Batch], stream: TextIO) -> int:
    """Name the first files that were skipped, a line each; how many there are."""
    skipped = [entry for batch in batches for entry in batch.skipped]
    for path, reason in skipped[:NAMED]:
        print(f"skipped {path}: {reason}", file=stream)
    if skipped[NAMED:]:
        print(f"skipped {len(skipped) - NAMED:,} more", file=stream)
    return len(skipped)


def _device(model: str | Path | None) -> str:
    from stages.encode.config import Params

    return "auto" if model is not None else parse(Params, read_params_file()).device
