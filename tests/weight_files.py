"""Checkpoints of vision models, in the files in which they are published."""

from pathlib import Path

import timm
import torch


def save_checkpoint(name: str, path: Path, seed: int = 5) -> Path:
    """A random model of timm with its classifier, as a ``.pth`` of PyTorch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.save(timm.create_model(name).state_dict(), path)
    return path
