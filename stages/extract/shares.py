"""``python -m stages extract --shard I/N`` and ``--merge``: an extraction shared out by whatever starts the commands.

All N read ``data/images`` and ``models/clip`` and write their parts below ``.resume`` of one directory, which the
machines share. Nothing passes between them. docs/distributed.md has examples for Slurm and Kubernetes.
"""

import re
from contextlib import suppress

from stages.artifacts import IMAGES
from stages.clip import MIXED, load_clip
from stages.device import resolve_device
from stages.errors import InputError
from stages.extract.config import Params
from stages.extract.parts import Parts, stored_precision
from stages.extract.pixels import encode_row_groups
from stages.features import Features
from stages.images import ImageShards


def extract_share(params: Params, share: str) -> None:
    """Encode every N-th row group from number I on, but for those that are done.

    Row groups are dealt out in turn since those with training images, of which there are views to encode, often lie
    together.

    Args:
        share: "I/N", I from 0 to N - 1.

    Raises:
        InputError: `share` is no such thing, or as of :func:`stages.extract.pixels.extract`.
    """
    index, count = parsed(share)
    shards = _shards_of_images()
    clip = load_clip(device=resolve_device(params.device), precision=params.extract.precision)
    encode_row_groups(clip, Parts.of(shards, clip, params.extract, alone=False).missing(index, count), params)


def parsed(share: str) -> tuple[int, int]:
    """I and N of "I/N".

    Raises:
        InputError: it is no such thing.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", share, re.ASCII)
    if found and int(found[1]) < int(found[2]):
        return int(found[1]), int(found[2])
    raise InputError(f"--shard {share[:40]!r}: expected I/N, part I of N with I from 0 to N - 1, like 0/4 or 3/4")


def merge(params: Params) -> None:
    """Join the parts into ``data/features.h5``, the same file that one process writes; a second time does nothing.

    Raises:
        InputError: parts are missing or damaged; or as of :func:`stages.extract.pixels.extract`.
    """
    candidates = _candidates(_shards_of_images(), params)
    missing = [len(parts.missing()) for parts in candidates]
    parts, least = min(zip(candidates, missing, strict=True), key=lambda entry: entry[1])
    if least == len(parts.groups) and _is_made(candidates):
        return
    if least:
        raise InputError(
            f"--merge: {least:,} of {len(parts.groups):,} row groups of {IMAGES} are not encoded with these "
            f"parameters; run `python -m stages extract --shard I/N` for every I (again: done ones are left out)"
        )
    parts.join()


def _shards_of_images() -> ImageShards:
    shards = ImageShards()
    if shards.feature_dim is not None:
        raise InputError(
            f"--shard, --merge: {IMAGES} has features, which are converted and not encoded; run `python -m stages "
            f"extract` alone"
        )
    return shards


def _candidates(shards: ImageShards, params: Params) -> list[Parts]:
    """The parts that may be there: ``auto`` is another precision on a GPU, which is not wherever they are joined."""
    clip = load_clip(precision=params.extract.precision)
    found = [Parts.of(shards, clip, params.extract, alone=False)]
    if params.extract.precision == "auto" and params.device in ("auto", "cuda"):
        found.append(found[0].in_precision(MIXED))
    for parts in found:
        with suppress(OSError):
            parts.directory.rmdir()  # only where there is none of them
    return found


def _is_made(candidates: list[Parts]) -> bool:
    """Whether ``data/features.h5`` is what one of these would be joined to."""
    with suppress(InputError), Features() as features:
        return any((features.provenance, features.precision) == (parts.provenance, stored_precision(parts.clip))
                   for parts in candidates)  # fmt: skip
    return False
