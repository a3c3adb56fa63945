"""Batches of cached features that stay on disk, so that memory does not grow with their number.

In an epoch the images are not shuffled one by one, which would be a read from the disk for each: blocks of neighbours
are shuffled, a window of many blocks is read, and the images of a window are shuffled into batches.
"""

from collections.abc import Generator, Iterator

import numpy as np
import torch
from torch import Tensor

from stages.artifacts import damaged
from stages.features import Features
from stages.hashnet import Network, relaxed_codes
from stages.train.batches import drawn_views, number_of_batches
from stages.train.distributed import ALONE, Ranks

#: Bytes of stored features that are in memory at a time. Features that altogether take no more are not streamed.
WINDOW = 2**29
#: Images of a block: so many that reading them in one go pays, so few that a window has images from everywhere.
BLOCK = 64


def fits(features: Features, views: int) -> bool:
    """Whether `views` features of each training image fit into a window."""
    return views * len(features.train_id) * features.dim * 2 <= WINDOW


class StreamedRows:
    """Unit features of the training images: of it as of an array (n, dim), rows are read when they are asked for."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self.shape = len(features.train_id), features.dim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """float32 (b, dim), of rows in any order."""
        ids = self.features.train_id[rows]
        order = np.argsort(ids, kind="stable")
        found = np.empty((len(ids), self.features.dim), np.float32)
        found[order] = self.features.images(ids[order])
        return found


class StreamedTensor:
    """The same as a tensor on the training device."""

    def __init__(self, rows: StreamedRows, device: torch.device) -> None:
        self.rows, self.device, self.shape = rows, device, torch.Size(rows.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.from_numpy(self.rows[rows.cpu().numpy()]).to(self.device)

    def split(self, size: int, of: slice = slice(None)) -> Iterator[Tensor]:
        """All rows in order, or those `of` a slice, `size` at a time."""
        first, stop, _ = of.indices(len(self))
        for start in range(first, stop, size):
            yield torch.from_numpy(self.rows[start : min(start + size, stop)]).to(self.device)


#: Training features, wherever they are.
Rows = Tensor | StreamedTensor


def array_of(rows: Rows) -> np.ndarray | StreamedRows:
    """The same rows for work without PyTorch."""
    return rows.cpu().numpy() if isinstance(rows, Tensor) else rows.rows


class StreamedViews:
    """:class:`stages.train.batches.Batches` of cached features on disk."""

    def __init__(
        self, features: Features, batch_size: int, device: torch.device, ranks: Ranks = ALONE
    ) -> None:  # fmt: skip
        self.features, self.batch_size, self.device, self.ranks = features, batch_size, device, ranks
        self.n = len(features.train_id)

    def epoch(self, views: int, seed: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        features, generator = self.features, torch.Generator().manual_seed(seed)
        shown = max(views, 1)
        most = max(WINDOW // (shown * features.dim * 2), self.batch_size)
        # One for all windows: memory that is new to the process costs as much as what is read into it.
        buffer = np.empty((shown, min(most, self.n), features.dim), np.float16)
        places_of_views = torch.arange(shown)[:, None] * buffer.shape[1]
        for blocks, parts in windows(self.n, self.batch_size, most, generator):
            images = np.concatenate([np.arange(*block) for block in blocks.tolist()])
            # The images of a block are shown by the same views, so that no others need be read. View 1 of one image has
            # no more to do with view 1 of another than with view 2 of it.
            self._read(blocks, drawn_views(features.n_views, views, len(blocks), generator), buffer)
            window = torch.from_numpy(buffer).to(self.device).flatten(0, 1)
            finite = torch.tensor(True, device=self.device)
            for places in parts:
                rows = torch.from_numpy(images[places.numpy()]).to(self.device)
                mine = places[self.ranks.part(len(places))]
                chosen = (places_of_views + mine).flatten().to(self.device)
                inputs = window.index_select(0, chosen).float()
                length = torch.linalg.vector_norm(inputs, dim=1, keepdim=True)
                finite &= length.isfinite().all()
                yield inputs.div_(length.clamp_min_(1e-12)), rows.repeat(shown)
            if not finite:  # asked once a window: a GPU would have to wait for the answer
                raise damaged(features.path, "has features that are not finite numbers")

    def _read(self, blocks: Tensor, drawn: Tensor, buffer: np.ndarray) -> None:
        """Features of blocks of images, as they are stored, into the beginning of `buffer` float16 (shown, w, dim).

        Args:
            drawn: (views, k) which views of each block; where there are none, the images themselves.
        """
        end = 0
        for (start, stop), views in zip(blocks.tolist(), drawn.T.tolist(), strict=True):
            place, end = end, end + stop - start
            if not views:
                buffer[0, place:end] = self.features.stored_train(start, stop)
            for shown, view in enumerate(views):
                buffer[shown, place:end] = self.features.stored_view(view, start, stop)

    def all_codes(self, net: Network) -> Tensor:
        part_of_rank = self.ranks.part(self.n)
        codes = torch.empty(part_of_rank.stop - part_of_rank.start, net.config.bits, device=self.device)
        parts = StreamedTensor(StreamedRows(self.features), self.device).split(net.CHUNK, part_of_rank)
        for part, rows in zip(codes.split(net.CHUNK), parts, strict=True):
            part.copy_(relaxed_codes(net, rows))
        return codes


def windows(n: int, batch_size: int, most: int, generator: torch.Generator) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """A random order of n images in windows of at most `most`, and at least a batch.

    Returns:
        for each window its blocks, (k, 2) first image and end of each, ascending; and batches, places (b,) among the
            images of these blocks. All batches together have the sizes of :func:`stages.train.batches.batches`.
    """
    steps = number_of_batches(n, batch_size)
    count = -(-steps // max(1, most // batch_size))
    starts = torch.randperm(-(-n // BLOCK), generator=generator) * BLOCK
    sizes = (n - starts).clamp_max(BLOCK)
    ends = sizes.cumsum(0)  # of the blocks, in the order of the epoch
    for window in range(count):
        # Batch i ends where tensor_split would end it.
        edges = [step * (n // steps) + min(step, n % steps)
                 for step in range(window * steps // count, (window + 1) * steps // count + 1)]  # fmt: skip
        within = (ends > edges[0]) & (ends - sizes < edges[-1])
        first = starts[within] + (edges[0] - (ends - sizes)[within]).clamp_min(0)
        stop = (starts + sizes)[within] - (ends[within] - edges[-1]).clamp_min(0)
        blocks = torch.stack([first, stop], dim=1)[first.argsort()]
        order = torch.randperm(edges[-1] - edges[0], generator=generator)
        yield blocks, list(order.tensor_split([edge - edges[0] for edge in edges[1:-1]]))
