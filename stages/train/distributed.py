"""Training by several processes, the ranks, that ``torchrun`` started: who they are, and what they tell each other.

Every rank draws the order of the images, their views and what else is random for the whole batch, from the same seeds,
and takes its part of it. The losses compare pairs within a batch: so the codes of all ranks are gathered, each rank
computes the loss of the whole batch, and its gradient with respect to the codes of its own part goes back through the
network. What does not go through the network is done by one rank and broadcast, or shared out by images.

One process is its own first and only rank: nothing is sent then.
"""

import io
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from stages.components.reduction import Portion
from stages.errors import InputError, OutsideError
from stages.progress import silent

T = TypeVar("T")

#: For the ranks to meet; and to wait for one another, which is as long as what one of them does for all.
MEETING, WAITING = timedelta(minutes=5), timedelta(hours=6)
#: The key that the first rank to end with an error sets.
ENDED = "ended"


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: its number, from 0, among all `world`; local: among those on its machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """The rows of this rank among n: consecutive, as many as others have, or one more or less."""
        edges = bounds(n, self.world)
        return slice(edges[self.rank], edges[self.rank + 1])

    def places(self, count: int, views: int) -> Tensor:
        """The same of a batch of `count` images, of which there are `views` views one after the other: (places,)."""
        return torch.arange(views * count).view(views, count)[:, self.part(count)].flatten()

    def portion(self, n: int) -> Portion:
        """The same of n rows, for sums over all of them."""
        return Portion(self.part(n).start, n, self.total)

    def total(self, array: np.ndarray) -> np.ndarray:
        """The sum of float64 arrays of one shape, one of each rank."""
        if self.world == 1:
            return array
        summed = torch.from_numpy(np.array(array, np.float64))
        dist.all_reduce(summed)
        return summed.numpy()

    def gathered(self, rows: np.ndarray, n: int) -> np.ndarray:
        """All n rows (n, d), of which `rows` are the part of this rank."""
        if self.world == 1:
            return rows
        found = np.empty((n, *rows.shape[1:]), rows.dtype)
        found[self.part(n)] = rows
        self.complete(found, bounds(n, self.world))
        return found

    def complete(self, rows: np.ndarray, edges: list[int]) -> None:
        """Fill up rows (n, d), of which each rank has those between two `edges` (world + 1,)."""
        for rank, (start, stop) in enumerate(itertools.pairwise(edges) if self.world > 1 else ()):
            if stop > start:
                dist.broadcast(torch.from_numpy(rows[start:stop]), src=rank)

    def first(self, make: Callable[[], T]) -> T:
        """What the first rank makes, for all; between ranks it is pickled."""
        if self.world == 1:
            return make()
        made = [make() if self.is_first else None]
        dist.broadcast_object_list(made, src=0)
        return made[0]

    def wait(self) -> None:
        """For all others to come here."""
        self.total(np.zeros(1))

    def opened(self, path: Path) -> AbstractContextManager[BinaryIO | None]:
        """A file that the first rank has, for all, to be read; None where it has none."""
        if self.world == 1:
            return open(path, "rb") if path.exists() else nullcontext()
        content = self.first(lambda: path.read_bytes() if path.exists() else None)
        return nullcontext() if content is None else io.BytesIO(content)

    def device(self, asked: torch.device) -> torch.device:
        """The device of this rank: of several GPUs of a machine its own.

        Raises:
            InputError: there are not so many, or the ranks could not talk from there.
        """
        if self.world == 1 or asked.type == "cpu":
            return asked
        if asked.type != "cuda":
            raise InputError(f"device: {asked.type} trains in one process alone; set cpu")
        if self.local >= torch.cuda.device_count():
            raise InputError(
                f"device: process {self.local + 1} of a machine with {torch.cuda.device_count()} GPUs; start no more "
                f"than there are (--nproc-per-node)"
            )
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    def require_same(self, key: str) -> None:
        """Refuse to train where the first rank has another `key`, which stands for all that training depends on.

        Raises:
            InputError: says so.
        """
        if key != self.first(lambda: key):
            raise InputError(
                f"data: rank {self.rank} has other artifacts, parameters, code or libraries than rank 0; bring them to "
                f"all machines with `git pull` and `dvc pull`"
            )

    def require_enough(self, images: int) -> None:
        """Refuse batches in which a rank would have nothing to do; the smallest one has so many images.

        Raises:
            InputError: says what to change.
        """
        if images < self.world:
            raise InputError(
                f"train.batch_size: batches of {images} images for {self.world} ranks; set more, or start fewer ranks"
            )


#: A process that trains by itself.
ALONE = Ranks()


def current() -> Ranks:
    """The ranks within :func:`joined`; elsewhere this process alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))


def bounds(n: int, world: int) -> list[int]:
    """Where the parts of n rows begin and end: (world + 1,). They are those of ``Tensor.tensor_split``."""
    return [rank * (n // world) + min(rank, n % world) for rank in range(world + 1)]


# Codes of a whole batch


class _Gather(torch.autograd.Function):
    """Rows of all ranks, in the order of the batch.

    Every rank computes the whole loss of them. So the gradient of a rank's own rows is all there is, and needs not be
    sent; it is multiplied by the number of ranks, by which DistributedDataParallel will divide.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, ranks: Ranks, count: int, views: int) -> Tensor:
        most, source = _layout(count, views, ranks.world)
        padded = local.new_zeros(most, *local.shape[1:])
        padded[: len(local)] = local
        found = local.new_empty(ranks.world * most, *local.shape[1:])
        dist.all_gather(list(found.split(most)), padded)
        ctx.places, ctx.world = ranks.places(count, views).to(local.device), ranks.world
        return found.index_select(0, source.to(local.device))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient.index_select(0, ctx.places) * ctx.world, None, None, None


@cache
def _layout(count: int, views: int, world: int) -> tuple[int, Tensor]:
    """Rows that are sent by each rank, the last of them filled up, and where in them those of the batch are."""
    edges = torch.tensor(bounds(count, world))
    sizes, images = edges.diff(), torch.arange(count)
    owner = torch.searchsorted(edges[1:], images, right=True)
    most = views * int(sizes.max())
    within = torch.arange(views)[:, None] * sizes[owner] + images - edges[owner]
    return most, (owner * most + within).flatten()


def gather(local: Tensor, ranks: Ranks, count: int) -> Tensor:
    """Codes (views * count, K) of a batch of `count` images, view by view; `local` (views * b, K) are of this rank."""
    part = ranks.part(count)
    return _Gather.apply(local, ranks, count, len(local) // (part.stop - part.start))


# Beginning and end


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other ranks, which the variables of ``torchrun`` tell of. All of them end when one does.

    The one that fails says why; the others are silent then. When one is gone without a word, the others say so.

    Raises:
        InputError: a variable is missing; OutsideError: the ranks do not meet, or one of them is gone.
    """
    try:
        store, rank, world = next(dist.rendezvous("env://", timeout=MEETING))
    except ValueError as error:
        raise InputError(f"WORLD_SIZE: is set, but {error}; start several processes with torchrun") from None
    except RuntimeError:
        raise OutsideError(
            f"no connection to the other ranks by {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}; "
            f"check that the machines reach each other, and start all of them"
        ) from None
    with _one_voice(store, rank), silent() if rank else nullcontext():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", store=dist.PrefixStore("ranks", store),
            rank=rank, world_size=world, timeout=WAITING,
        )  # fmt: skip
        yield
        dist.destroy_process_group()


@contextmanager
def _one_voice(store: Any, rank: int) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to all when one has ended, and this one does
        # NCCL's errors are of that type; Gloo's have the names of its files.
        lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        if not _speaks(store, rank, lost):
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)
        if lost:
            raise OutsideError(
                "train: another rank is gone, killed or with its machine; the same command goes on at the last "
                "checkpoint"
            ) from None
        raise


def _speaks(store: Any, rank: int, lost: bool) -> bool:
    """Whether this rank says why it ends: the first with an error of its own does, or all where none had one."""
    try:
        if lost:
            return not store.check([ENDED])
        return store.compare_set(ENDED, "", str(rank)).decode() == str(rank)
    except RuntimeError:  # the store is gone with the rank that kept it
        return True
