"""Stage ``download``: any source to ``data/images/``, ``data/dataset.json``, ``data/splits.json`` and two reports."""

import hashlib
import shutil
from dataclasses import asdict
from pathlib import Path

from stages.artifacts import (
    DATASET,
    IMAGES,
    SPLITS,
    Provenance,
    fingerprint,
    library_versions,
    replacing_directory,
    resume_directory,
    write_csv,
    write_json,
)
from stages.download.config import DatasetOptions, Params
from stages.download.near_duplicates import EXAMPLES, near_duplicates
from stages.download.protocols import Counts, assign, choose
from stages.download.registry import DATASETS
from stages.download.shards import write_shards
from stages.download.source import Source
from stages.download.splits import Splits, read_splits, write_splits
from stages.download.verify import Verified, names_of, verify
from stages.errors import InputError
from stages.images import Dataset
from stages.workers import cores

SKIPPED = Path("reports/skipped.csv")
NEAR_DUPLICATES = Path("reports/near_duplicates.csv")

#: Options that change nothing in the result, and may tell what is nobody else's business.
ELSEWHERE = {"mirrors", "workers", "max_skipped"}


def run(params: Params) -> None:
    """Run the stage.

    Raises:
        InputError: bad data or parameters, or too many unreadable images.
        OutsideError: the data set cannot be fetched.
    """
    options = params.dataset
    source = DATASETS[options.name](options)
    # What was verified serves every protocol, so the protocol is not among what it is known by.
    state = (source.name, source.source, source.identity, source.digests, source.class_names, source.size,
             library_versions("pillow", "pyarrow", "simplejpeg"))  # fmt: skip
    work = resume_directory("download", state)
    workers = options.workers or cores()
    verified = verify(source, work, workers)
    absent = ((name, "is listed, but not there") for name in source.absent)
    write_csv(SKIPPED, ("source", "reason"), [*verified.skipped, *absent])
    require_enough(verified, source.source, options.max_skipped)
    splits = split(verified, options)
    pairs = report_near_duplicates(verified, splits, workers)
    dataset = describe(source, verified, splits, pairs)
    provenance = Provenance(
        stage="download", dataset=dataset.digest, params=params.model_dump(mode="json", exclude={"dataset": ELSEWHERE}),
        versions=library_versions("numpy", "pillow", "pyarrow"),
    )  # fmt: skip
    shards = fingerprint([asdict(dataset), asdict(provenance)])
    files = write_shards(verified.parts, splits.columns, work / shards, dataset, provenance, workers)
    with replacing_directory(IMAGES) as directory:
        for file in files:
            shutil.move(file, directory / file.name)
        DATASET.unlink(missing_ok=True)  # never beside images of another data set
    write_splits(splits, source.name, verified.content, SPLITS)
    write_json(DATASET, asdict(dataset))
    shutil.rmtree(work)
    for note in dataset.notes:
        print(f"download: {note}")


def split(verified: Verified, options: DatasetOptions) -> Splits:
    """The splits of the split file or of the protocol that `options` name."""
    if options.splits is not None:
        return read_splits(Path(options.splits).expanduser(), verified.content, len(verified.labels))
    protocol = choose(options.protocol, options.name, verified.source_split)
    counts = Counts(options.queries, options.database, options.train)
    return assign(protocol, verified.labels, verified.source_split, options.seed, counts)


def report_near_duplicates(verified: Verified, splits: Splits, workers: int) -> list[tuple[int, int, int]] | None:
    """Write ``reports/near_duplicates.csv``; (query, database image, differing bits), None without pixels."""
    pairs = None
    if verified.hashes is not None:
        query_id, database_id = splits.is_query.nonzero()[0], splits.is_database.nonzero()[0]
        pairs = near_duplicates(verified.hashes, query_id, database_id, workers)
    listed = (pairs or [])[:EXAMPLES]
    names = names_of(verified, (index for pair in listed for index in pair[:2]))
    header = ("query", "database", "differing_bits", "query_name", "database_name")
    write_csv(NEAR_DUPLICATES, header, ((*pair, names[pair[0]], names[pair[1]]) for pair in listed))
    return pairs


def describe(source: Source, verified: Verified, splits: Splits, pairs: list | None) -> Dataset:
    """What ``data/dataset.json`` says."""
    notes = list(source.notes)
    if pairs:
        notes.append(f"queries with a near-duplicate in the database: {len(pairs):,}; see {NEAR_DUPLICATES}")
    return Dataset(
        name=source.name,
        protocol=splits.protocol,
        class_names=list(source.class_names),
        counts={"images": len(verified.labels)}
        | {name.removeprefix("is_"): int(mask.sum()) for name, mask in splits.columns.items()},
        cutoffs=list(splits.cutoffs),
        licence=source.licence,
        source=source.source,
        digests=dict(source.digests),
        skipped=len(verified.skipped),
        digest=hashlib.sha256(f"{verified.content} {splits.digest}".encode()).hexdigest(),
        splits=splits.digest,
        near_duplicates=None if pairs is None else len(pairs),
        notes=notes,
    )


def require_enough(verified: Verified, source: str, max_skipped: float) -> None:
    """Refuse a source of which more than the fraction `max_skipped` cannot be read, or nothing can."""
    bad, good = len(verified.skipped), len(verified.labels)
    if not good:
        raise InputError(f"{source}: none of its {bad:,} images can be read; see {SKIPPED}")
    if bad > max_skipped * (bad + good):
        raise InputError(
            f"{source}: {bad:,} of {bad + good:,} images cannot be read, more than dataset.max_skipped "
            f"({max_skipped:g}) allows; see {SKIPPED}"
        )
