"""Which device the tensors live on, and the seeds of everything that draws."""

import random

import numpy as np
import torch

from stages.errors import InputError


def resolve_device(device: str) -> torch.device:
    """The device for a ``device`` parameter: ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        InputError: the device asked for is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, there in present.items() if there))
    if not present.get(device, False):
        there = ", ".join(name for name, is_there in present.items() if is_there)
        raise InputError(f"device: {device!r} is not available on this machine; take auto, or one of: {there}")
    return torch.device(device)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (on all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries that are given no generator draw from this one)
    torch.manual_seed(seed)


def derived_seed(seed: int, index: int) -> int:
    """A seed below 2**32 for part `index` of work seeded with `seed`.

    PyTorch's CPU generator takes the low 32 bits of its seed alone, so the two are hashed rather than put side by side.
    """
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
