"""An extraction in parts: one file of features for each row group, whoever encodes it, then all of them joined."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py

from stages.artifacts import FEATURES, Provenance, library_versions, resume_directory, writing
from stages.clip import ClipModel
from stages.extract.config import Extract
from stages.extract.features_file import lay_out
from stages.images import ImageShards, RowGroup
from stages.parts import read_part


@dataclass(frozen=True)
class Parts:
    """The parts of one extraction, in a directory that is known by all that shapes their content.

    So what an extraction of other images, with another model, other options or other code has left is never taken for
    a part of this one. The numbers of workers and of images in a batch are no part of that.

    Attributes:
        clip: the model; provenance: of ``data/features.h5``.
        directory: where the parts are; groups: the row group of each part's file, in id order.
    """

    shards: ImageShards
    clip: ClipModel
    options: Extract
    provenance: Provenance
    directory: Path
    groups: dict[Path, RowGroup]

    @classmethod
    def of(cls, shards: ImageShards, clip: ClipModel, options: Extract, alone: bool = True) -> "Parts":
        """The parts of the extraction of `shards` with `clip`; `alone` as of :func:`resume_directory`."""
        provenance = Provenance(
            "extract", dataset=shards.provenance.dataset, model=clip.sha256,
            params=options.model_dump(include={"views", "seed"}),
            versions=library_versions("torch", "torchvision", "open_clip_torch"),
        )  # fmt: skip
        directory = resume_directory("extract", [provenance.to_json(), clip.precision], alone)
        groups = {directory / f"{number:06d}.npz": group for number, group in enumerate(shards.row_groups())}
        return cls(shards, clip, options, provenance, directory, groups)

    def in_precision(self, precision: str) -> "Parts":
        """The parts of the same extraction in another precision."""
        return Parts.of(self.shards, replace(self.clip, precision=precision), self.options, alone=False)

    def missing(self, index: int = 0, count: int = 1) -> dict[Path, RowGroup]:
        """Those that are not there yet, of every `count`-th part from number `index` on."""
        share = list(self.groups.items())[index::count]
        return {part: group for part, group in share if not part.exists()}

    def join(self) -> None:
        """Join all parts into ``data/features.h5``, then remove them.

        Raises:
            InputError: a part is damaged; it is removed.
        """
        join(list(self.groups), self.shards, self.clip, self.options.views, self.provenance)
        shutil.rmtree(self.directory)


def stored_precision(clip: ClipModel) -> str:
    """What ``data/features.h5`` says of its precision."""
    return f"{clip.precision}, stored as float16"


def join(parts: Sequence[Path], shards: ImageShards, clip: ClipModel, n_views: int, provenance: Provenance) -> None:
    """Join parts, in order, into ``data/features.h5``.

    Raises:
        InputError: a part is damaged; it is removed.
    """
    attributes = {
        "model": clip.name, "pretrained": clip.pretrained or "",
        "preprocessing": f"{clip.image_size} pixels ({clip.resize_mode}, {clip.interpolation}), "
                         f"mean {clip.mean}, std {clip.std}",
        "precision": stored_precision(clip),
    }  # fmt: skip
    ids, train_ids = shards.columns(["id"])["id"].to_numpy(), shards.ids("train")
    with writing(FEATURES) as target, h5py.File(target, "w") as file:
        images, views = lay_out(file, ids, train_ids, clip.dim, n_views, provenance, attributes)
        row = train_row = 0
        for part in parts:
            encoded, augmented = read_part(part, "images", "views")
            row_end, train_end = row + len(encoded), train_row + augmented.shape[1]
            images[row:row_end], views[:, train_row:train_end] = encoded, augmented
            row, train_row = row_end, train_end
