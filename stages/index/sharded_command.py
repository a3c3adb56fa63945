"""``python -m stages codes``: any number of codes, without their images, in shards on disk."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.errors import InputError
from stages.index import sharded
from stages.index.sharded import ShardedIndex, code_blocks, merged, none
from stages.progress import track
from stages.tables import write_table


def build(directory: Path, files: list[Path], per_shard: int) -> None:
    """Write the codes of files as shards.

    Raises:
        InputError: a file is missing or damaged, or has no codes, or the directory is something else.
    """
    if inside := [file for file in files if file.resolve().is_relative_to(directory.resolve())]:
        raise InputError(f"{inside[0]}: lies in {directory}, which is replaced; name another directory for the shards")
    manifest = sharded.build(directory, code_blocks(files), per_shard, sharded.built_from(files))
    print(f"{manifest.total:,} codes of {manifest.bits} bits in {len(manifest.codes):,} shards in {directory}")


def verify(directory: Path) -> None:
    """Compare the content of all shards with their digests.

    Raises:
        InputError: one has other content, or is missing.
    """
    index = ShardedIndex(directory)
    index.verify()
    print(f"{len(index.manifest.codes):,} shards as noted in {directory / sharded.MANIFEST}")


def search(directory: Path, queries: Path, top: int, output: Path, on_ray: bool) -> None:
    """Search the codes of a file; write ``query``, ``rank``, ``row``, ``distance`` of each hit.

    Raises:
        InputError: an argument is of no use, or a file is missing or damaged.
        OutsideError: Ray does not answer or broke down.
    """
    if output.suffix != ".parquet":
        raise InputError(f"--output {output}: hits are written as .parquet")
    index = ShardedIndex(directory)
    blocks = list(code_blocks([queries]))
    if not blocks:
        raise InputError(f"{queries}: has no codes to search with")
    codes = np.concatenate(blocks)
    if on_ray:
        from stages.index.sharded_ray import RayShards
        from stages.ray_pool import ray_machines

        with ray_machines() as machines:
            rows, distances = RayShards(directory, machines).nearest(codes, top)
    else:
        found = none(len(codes))
        for number in track(range(len(index.manifest.codes)), "search", len(index.manifest.codes)):
            found = merged([found, index.nearest(codes, top, [number])], top)
        rows, distances = found
    count, hits = rows.shape
    table = pa.table({
        "query": np.repeat(np.arange(count), hits), "rank": np.tile(np.arange(1, hits + 1), count),
        "row": rows.ravel(), "distance": distances.ravel(),
    })  # fmt: skip
    write_table(table, output, index.manifest.provenance, {"bits": index.manifest.bits})
