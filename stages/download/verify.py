"""The one pass over a source: every image is decoded to see that it can be, and what can is kept as it came.

The pass writes parts of a thousand records, each an Arrow file, which is read back without being copied; several
processes write several at a time. A pass that was interrupted does the parts that are missing or damaged. No process
holds more than a batch of images.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from stages.download.near_duplicates import HASH_BYTES, THUMBNAIL, perceptual_hashes
from stages.download.source import MAX_BYTES, Record, Source
from stages.errors import InputError
from stages.images import SCHEMA, grey_thumbnail, multi_hot
from stages.parts import is_whole, sealing
from stages.progress import progress_bar
from stages.workers import run_threads, run_workers, shared_out

#: Records of a part, and bytes of one of its batches.
PART_ROWS = 1000
BATCH_BYTES = 64 * 2**20

#: Key of what is known of a part beside its images.
PART_KEY = b"part"


@dataclass(frozen=True)
class Verified:
    """Verified images without splits; the row of an array is the id of the image.

    Attributes:
        parts: the files, in order.
        labels: bool (n, n_classes) multi-hot.
        source_split: str (n,).
        hashes: perceptual hashes, uint8 (n, 32); None for images without pixels.
        skipped: (name, reason) of every image that could not be read.
        content: SHA-256 over class names, labels and images.
    """

    parts: list[Path]
    labels: np.ndarray
    source_split: np.ndarray
    hashes: np.ndarray | None
    skipped: list[tuple[str, str]]
    content: str


def verify(source: Source, directory: Path, workers: int) -> Verified:
    """Read what the parts in `directory` lack of `source`, with `workers` processes.

    Raises:
        InputError: what reading the source raises; not as many records as promised; too many classes for a label.
        OutsideError: a worker was killed.
    """
    if len(source.class_names) > np.iinfo(np.int16).max:
        raise InputError(f"{source.source}: {len(source.class_names):,} classes, at most {np.iinfo(np.int16).max:,}")
    parts = [directory / f"{number:06d}.arrow" for number in range(max(1, -(-source.size // PART_ROWS)))]
    missing = [number for number, whole in enumerate(run_threads(is_whole, parts, workers)) if not whole]
    shares = shared_out(missing, workers if source.has_pixels else 1)
    with progress_bar("verify images", source.size) as bar:
        bar.advance(min(source.size, PART_ROWS * (len(parts) - len(missing))))
        n_skipped = 0
        for known in run_workers(partial(_write_parts, source, parts), shares, "verifying images"):
            n_skipped += len(known.skipped)
            bar.advance(known.records, f"{n_skipped} skipped" if n_skipped else "")
    verified, n_records = _collected(parts, source.class_names)
    if n_records != source.size:
        raise InputError(
            f"{source.source}: has {n_records:,} records, but promised {source.size:,}; get it again, and change "
            f"nothing there while it is read"
        )
    return verified


class _Known(NamedTuple):
    """What is known of a part: the records that went into it, (name, reason) of those that were skipped, a digest."""

    records: int
    skipped: list[tuple[str, str]]
    sha256: str


def _write_parts(source: Source, parts: Sequence[Path], numbers: Sequence[int]) -> Iterator[_Known]:
    """Write the parts `numbers`, in order; what follows one another is read in one go.

    A part is brought to the disk while the next one is read.
    """
    records: Iterator[Record] = iter(())
    with ThreadPoolExecutor(1) as disk:
        landing: Future[_Known] | None = None
        for before, number in pairwise([-2, *numbers]):
            if number != before + 1:
                records = iter(source.records(number * PART_ROWS))
            with ExitStack() as stack:
                temporary = stack.enter_context(sealing(parts[number]))
                # The last one takes all that is left, so that too much of it shows.
                known = _write_part(islice(records, None if number == len(parts) - 1 else PART_ROWS), temporary)
                written = stack.pop_all()
            if landing:
                yield landing.result()
            landing = disk.submit(_land, written, known)
        if landing:
            yield landing.result()


def _land(written: ExitStack, known: _Known) -> _Known:
    written.close()
    return known


def _write_part(records: Iterable[Record], path: Path) -> _Known:
    n_records, skipped, content = 0, [], hashlib.sha256()
    none = _batch([], b"")
    with ExitStack() as stack:
        writer: pa.RecordBatchFileWriter | None = None
        for listed in _batches(records):
            judged = _judge(listed)
            good = [record for record, judgement in zip(listed, judged, strict=True) if not judgement.problem]
            batch = _batch(good, b"".join(judgement.thumbnail for judgement in judged))
            n_records += len(listed)
            skipped += [(r.origin or r.path, j.problem) for r, j in zip(listed, judged, strict=True) if j.problem]
            if good:
                _add_content(content, batch, good)
                writer = writer or stack.enter_context(pa.ipc.new_file(path, batch.schema))
                writer.write_batch(batch)
                none = batch.slice(0, 0)
        writer = writer or stack.enter_context(pa.ipc.new_file(path, none.schema))
        known = _Known(n_records, skipped, content.hexdigest())
        writer.write_batch(none, {PART_KEY: json.dumps(known._asdict())})
    return known


def open_part(path: Path) -> pa.RecordBatchFileReader:
    """A part: batches of usable records, and an empty one at the end."""
    return pa.ipc.open_file(pa.memory_map(str(path)))


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records in lists of, but for single ones, at most :data:`BATCH_BYTES` bytes."""
    batch: list[Record] = []
    size = 0
    for record in records:
        if batch and size + len(record.data) > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += len(record.data)
    if batch:
        yield batch


class _Judgement(NamedTuple):
    """Why a record cannot be used ("" if it can), and the thumbnail of a usable one that has pixels."""

    problem: str
    thumbnail: bytes = b""


def _judge(records: list[Record]) -> list[_Judgement]:
    with warnings.catch_warnings(action="ignore"):  # those of the decoders
        return list(map(_judgement, records))


def _judgement(record: Record) -> _Judgement:
    data = record.data
    if record.problem:
        return _Judgement(record.problem)
    if record.features is not None:
        finite = np.isfinite(record.features).all()
        return _Judgement("" if finite else "has features that are not finite numbers")
    if not data:
        return _Judgement("is empty")
    if len(data) > MAX_BYTES:
        return _Judgement(f"{len(data):,} bytes, more than {MAX_BYTES:,}")
    try:
        return _Judgement("", grey_thumbnail(data, THUMBNAIL))
    except ValueError as error:
        return _Judgement(" ".join(str(error).split()))


def _batch(records: list[Record], thumbnails: bytes) -> pa.RecordBatch:
    """Usable records: image, labels, split, and perceptual hash or features."""
    pixels = pa.StructArray.from_arrays(
        [pa.array([r.data or None for r in records], pa.binary()), pa.array([r.path for r in records], pa.string())],
        fields=list(SCHEMA.field("image").type),
    )
    rows = [sorted(set(record.labels)) if len(record.labels) > 1 else record.labels for record in records]
    columns = {
        "image": pixels, "labels": pa.array(rows, SCHEMA.field("labels").type),
        "split": pa.array([record.split for record in records], pa.string()),
    }  # fmt: skip
    if records and records[0].features is not None:
        features = np.stack([record.features for record in records]).astype(np.float32)
        columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    else:
        hashes = perceptual_hashes(np.frombuffer(thumbnails, np.uint8).reshape(-1, *THUMBNAIL))
        buffers = [None, pa.py_buffer(hashes.tobytes())]
        columns["hash"] = pa.Array.from_buffers(pa.binary(HASH_BYTES), len(records), buffers)
    return pa.record_batch(columns)


def _add_content(content: "hashlib._Hash", batch: pa.RecordBatch, records: list[Record]) -> None:
    """Add the labels and the images (or features) of usable records to a running hash."""
    labels = batch["labels"]
    content.update(np.diff(labels.offsets).astype("<i8").tobytes())
    content.update(labels.flatten().to_numpy().astype("<i8").tobytes())
    if "features" in batch.schema.names:
        content.update(batch["features"].flatten().to_numpy().astype("<f4").tobytes())
        return
    images = [record.pixels or record.data for record in records]
    content.update(np.fromiter(map(len, images), dtype="<i8").tobytes())
    for image in images:
        content.update(image)


def _collected(paths: list[Path], class_names: tuple[str, ...]) -> tuple[Verified, int]:
    """All that the parts say beside the images, and the number of records that went into them."""
    parts: list[_Known] = []
    batches: list[pa.RecordBatch] = []
    for path in paths:
        part = open_part(path)
        last = part.num_record_batches - 1
        batches += map(part.get_batch, range(last))
        parts.append(_Known(**json.loads(part.get_batch_with_custom_metadata(last).custom_metadata[PART_KEY])))
    content = hashlib.sha256(json.dumps([list(class_names), [part.sha256 for part in parts]]).encode())
    labels = pa.chunked_array([batch["labels"] for batch in batches], SCHEMA.field("labels").type)
    splits = pa.chunked_array([batch["split"] for batch in batches], pa.string())
    has_pixels = bool(batches) and "hash" in batches[0].schema.names
    verified = Verified(
        parts=paths,
        labels=multi_hot(labels, len(class_names)),
        source_split=np.array(splits.to_pylist(), dtype=str),
        hashes=np.concatenate([_hashes(batch["hash"]) for batch in batches]) if has_pixels else None,
        skipped=[(name, reason) for name, reason in chain.from_iterable(part.skipped for part in parts)],
        content=content.hexdigest(),
    )
    return verified, sum(part.records for part in parts)


def _hashes(packed: pa.FixedSizeBinaryArray) -> np.ndarray:
    """Perceptual hashes as an array: uint8 (n, 32)."""
    return np.frombuffer(packed.buffers()[1], np.uint8)[: len(packed) * HASH_BYTES].reshape(-1, HASH_BYTES)


def names_of(verified: Verified, ids: Iterable[int]) -> dict[int, str]:
    """Names in the source of the images `ids`."""
    wanted = np.unique(np.fromiter(ids, dtype=np.int64))
    names: dict[int, str] = {}
    first = 0
    for part in map(open_part, verified.parts if len(wanted) else ()):
        for batch in map(part.get_batch, range(part.num_record_batches)):
            here = wanted[(wanted >= first) & (wanted < first + len(batch))]
            paths = batch["image"].field("path")
            names |= {int(index): paths[int(index) - first].as_py() for index in here}
            first += len(batch)
    return names
