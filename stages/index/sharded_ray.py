"""Shards searched by the actors of a Ray cluster: each has its shards, so that they stay in its machine's memory."""

from pathlib import Path
from typing import Any

import numpy as np

from stages.index.sharded import Found, ShardedIndex, merged
from stages.ray_pool import ATTEMPTS, Machines
from stages.workers import PASSED_ON


class RayShards:
    """The shards of a directory that all machines see, dealt out to one actor a core; searched again and again.

    Use it in the block of :func:`stages.ray_pool.ray_machines`, which says of errors what is to be said.
    """

    def __init__(self, directory: Path, machines: Machines) -> None:
        import ray

        self._ray = ray
        self._index = ShardedIndex(directory)
        numbers = range(len(self._index.manifest.codes))
        count = max(1, min(len(numbers), machines.cores))
        # An actor that is lost is started anew, and asked again.
        make = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=ATTEMPTS, scheduling_strategy="SPREAD")(_Holder)
        self._actors: list[Any] = [make.remote(directory.absolute(), numbers[i::count]) for i in range(count)]

    def nearest(self, codes: np.ndarray, count: int) -> Found:
        """As :meth:`stages.index.sharded.ShardedIndex.nearest`."""
        self._index.require_queries(codes)
        found = self._ray.get([actor.nearest.remote(codes, count) for actor in self._actors])
        for error in found:
            if isinstance(error, Exception):
                raise error
        return merged(found, count)


class _Holder:
    def __init__(self, directory: Path, numbers: range) -> None:
        self._directory, self._numbers = directory, numbers
        self._index: ShardedIndex | None = None

    def nearest(self, codes: np.ndarray, count: int) -> Found | Exception:
        try:
            self._index = self._index or ShardedIndex(self._directory)
            return self._index.nearest(codes, count, self._numbers)
        except PASSED_ON as error:  # raised here, it would be a traceback of Ray's
            return error
