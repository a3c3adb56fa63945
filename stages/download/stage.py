"""Stage ``download``: any source to ``data/images/``, ``data/dataset.json`` and ``reports/skipped.csv``."""

import shutil
from dataclasses import asdict
from pathlib import Path

from stages.artifacts import (
    DATASET,
    IMAGES,
    Provenance,
    library_versions,
    replacing_directory,
    resume_directory,
    write_json,
)
from stages.download.cifar10 import cifar10
from stages.download.config import Params
from stages.download.folder import folder
from stages.download.parquet import parquet
from stages.download.protocols import PROTOCOLS, Counts, assign, choose
from stages.download.scenes import scenes
from stages.download.shards import SPLIT_COLUMNS, Unassigned, verify, write_shards, write_skipped
from stages.download.source import Source
from stages.errors import InputError
from stages.images import Dataset
from stages.params import PARAMS_FILE

SKIPPED = Path("reports/skipped.csv")


def run(params: Params) -> None:
    """Run the stage.

    Raises:
        InputError: bad data or parameters, or too many unreadable images.
        OutsideError: the data set cannot be fetched.
    """
    data = params.data
    source = open_source(params)
    work = resume_directory("download", params.model_dump())
    try:
        shutil.rmtree(work)
        work.mkdir()
        unassigned = verify(source, work)
        write_skipped(unassigned.skipped, SKIPPED)
        require_enough(unassigned, source.source, data.max_skipped)
        protocol = choose(data.protocol, params.dataset, unassigned.source_split)
        counts = Counts(data.queries, data.database, data.train)
        masks = assign(protocol, unassigned.labels, unassigned.source_split, data.seed, counts)
        splits = dict(zip(SPLIT_COLUMNS, masks, strict=True))
        dataset = Dataset(
            name=source.name,
            protocol=protocol.name,
            class_names=list(source.class_names),
            counts={"images": len(unassigned.labels)}
            | {name.removeprefix("is_"): int(mask.sum()) for name, mask in splits.items()},
            cutoffs=list(protocol.cutoffs),
            licence=source.licence,
            source=source.source,
            digests=dict(source.digests),
            skipped=len(unassigned.skipped),
            digest=unassigned.digest(splits),
        )
        provenance = Provenance(
            stage="download", dataset=dataset.digest, params=params.model_dump(),
            versions=library_versions("numpy", "pillow", "pyarrow"),
        )  # fmt: skip
        with replacing_directory(IMAGES) as directory:
            write_shards(unassigned, splits, directory, dataset, provenance)
            DATASET.unlink(missing_ok=True)  # never beside images of another data set
        write_json(DATASET, asdict(dataset))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def open_source(params: Params) -> Source:
    """The source that the parameters name; of ``cifar10``, the archive is fetched here."""
    data = params.data
    if params.dataset == "scenes":
        usual = PROTOCOLS["scenes"]
        return scenes(data.seed, (data.queries or usual.queries) + (data.database or usual.database))
    if params.dataset == "cifar10":
        return cifar10(data.mirror)
    if data.path is None:
        raise InputError(f"{PARAMS_FILE}: data.path is missing; dataset '{params.dataset}' is read from there")
    return {"parquet": parquet, "folder": folder}[params.dataset](data.path)


def require_enough(unassigned: Unassigned, source: str, max_skipped: float) -> None:
    """Refuse a source of which more than the fraction `max_skipped` cannot be read, or nothing can."""
    bad, good = len(unassigned.skipped), len(unassigned.labels)
    if not good:
        raise InputError(f"{source}: none of its {bad:,} images can be read; see {SKIPPED}")
    if bad > max_skipped * (bad + good):
        raise InputError(
            f"{source}: {bad:,} of {bad + good:,} images cannot be read, more than data.max_skipped ({max_skipped:g}) "
            f"allows; see {SKIPPED}"
        )
