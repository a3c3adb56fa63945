"""Codes of images by a backbone, row group by row group: by this machine or by a Ray cluster."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.artifacts import HASHNET, resume_directory, sha256
from stages.backbone import BackboneNet, evaluation_pixels
from stages.codes import pack
from stages.decoding import Slice, SlicedShards, in_order, naming_lost_workers, slices_of
from stages.device import resolve_device
from stages.encode.config import Params
from stages.hashnet import load_hashnet, relaxed_codes
from stages.images import ImageShards, RowGroup
from stages.parts import content_of, read_part, write_part
from stages.ray_pool import Work, ray_machines, run_row_groups
from stages.workers import cores

LOST_WORKER = "encode: free some and run it again"


class PixelSlices(SlicedShards):
    """Item i: the images of slice i, as a backbone of images of `size` pixels takes them: uint8 (b, 3, size, size)."""

    def __init__(self, slices: list[Slice], size: int) -> None:
        super().__init__(slices)
        self.size = size

    def item(self, index: int) -> Tensor:
        return torch.stack([evaluation_pixels(image, self.size) for *_, image in self.decoded(self.slices[index])])


def encode_row_groups(
    net: BackboneNet, groups: Mapping[Path, RowGroup], device: torch.device, workers: int,
    write: Callable[[Path, np.ndarray], None],
) -> None:  # fmt: skip
    """Encode row groups, each in batches of its own, streamed.

    Args:
        groups: the row group of each part.
        write: takes a part when it is encoded, and its packed codes, uint8 (b, bits / 8).

    Raises:
        InputError: an image cannot be read, or a process that decodes was killed.
    """
    plan = {part: slices_of([group], net.CHUNK) for part, group in groups.items()}
    items = PixelSlices(list(chain.from_iterable(plan.values())), net.config.image_size)
    with naming_lost_workers(LOST_WORKER), closing(
        in_order(items, workers, "encode", yielding=device.type == "cpu")
    ) as made:
        for part, pieces in plan.items():  # no batch beyond its own is waited for before a part is written
            batches = islice(made, len(pieces))
            write(part, np.concatenate([pack(relaxed_codes(net, x.to(device)).cpu().numpy()) for x in batches]))
        next(made, None)  # ends the progress bar


def encode_shards(net: BackboneNet, shards: ImageShards, device: torch.device, workers: int) -> np.ndarray:
    """Packed codes of all images by a backbone, in the order of the shards: uint8 (N, bits / 8).

    Raises:
        InputError: as of :func:`encode_row_groups`.
    """
    codes: list[np.ndarray] = []
    groups = {Path(str(number)): group for number, group in enumerate(shards.row_groups())}
    encode_row_groups(net, groups, device, workers, lambda _, packed: codes.append(packed))
    return np.concatenate(codes)


class EncodedParts:
    """The codes of each row group by ``models/hashnet``, in a file each; what is there is not encoded again."""

    def __init__(self, shards: ImageShards) -> None:
        self._directory = resume_directory("encode", [shards.provenance.dataset, sha256(HASHNET / "model.safetensors")])
        self._groups = {self._directory / f"{i:06d}.npz": group for i, group in enumerate(shards.row_groups())}

    def encode(self, net: BackboneNet, params: Params) -> np.ndarray:
        """Packed codes of all images, in the order of the shards: uint8 (N, bits / 8).

        Raises:
            InputError: as of :func:`encode_row_groups`, Ray is not installed, or a file was damaged.
            OutsideError: Ray does not answer or broke down.
        """
        missing = {part: group for part, group in self._groups.items() if not part.exists()}
        if params.encode.engine == "ray":
            with ray_machines() as machines:
                device = machines.device(params.device)
                run_row_groups(begin, (device,), missing, machines, 1, device == "cuda", "encode")
        else:
            device = resolve_device(params.device)
            encode_row_groups(net.to(device), missing, device, cores(), _write)
        return np.concatenate([read_part(part, "codes")[0] for part in self._groups])

    def remove(self) -> None:
        """Remove the files, once the codes are where they belong."""
        shutil.rmtree(self._directory)


def _write(part: Path, codes: np.ndarray) -> None:
    write_part(part, codes=codes)


def begin(device: str) -> Work:
    """What an actor of Ray works with; it has one core, so that it decodes the images itself."""
    net, _ = load_hashnet()
    return partial(_encoded, net.to(device), torch.device(device))


def _encoded(net: BackboneNet, device: torch.device, group: RowGroup) -> bytes:
    made: list[bytes] = []
    encode_row_groups(net, {group[0]: group}, device, 0, lambda _, codes: made.append(content_of(codes=codes)))
    return made[0]
