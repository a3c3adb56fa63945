"""The checkpoint of a training: what PyTorch writes, and behind it the SHA-256 of that, which PyTorch does not read."""

import hashlib
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import torch

from stages.artifacts import writing
from stages.parts import removed
from stages.train.distributed import Ranks

#: Bytes of the sum, and those that are read at a time.
SUM, PIECE = 64, 2**24


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write it, atomically."""
    with writing(path) as file:
        torch.save(state, file)
        file.seek(0)
        file.write(hashlib.file_digest(file, "sha256").hexdigest().encode())


def read_checkpoint(path: Path, device: torch.device, ranks: Ranks) -> dict[str, Any] | None:
    """What the first rank has written there, on `device`; None where there is nothing.

    Raises:
        InputError: it is damaged; it has been removed, so that the same command begins anew.
        OSError: it cannot be read.
    """
    try:
        with ranks.opened(path) as file:
            if file is None:
                return None
            if not _is_whole(file):
                raise removed(path, "its content has not the sum that it was written with")
            file.seek(0)
            return torch.load(file, map_location=device, weights_only=True)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    except pickle.UnpicklingError:
        raise removed(path, "it holds something else than a training leaves") from None


def _is_whole(file: BinaryIO) -> bool:
    left, digest = file.seek(0, 2) - SUM, hashlib.sha256()
    file.seek(0)
    while left > 0 and (piece := file.read(min(left, PIECE))):
        digest.update(piece)
        left -= len(piece)
    return file.read() == digest.hexdigest().encode()
