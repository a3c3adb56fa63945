"""Checkpoints that others made: opened without running anything in them, and turned into safetensors."""

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stages.errors import InputError

#: File names under which a model directory or repository keeps its weights, the preferred one first.
NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def to_safetensors(source: Path, target: Path) -> None:
    """Write the weights of the checkpoint `source` to `target` as safetensors, values and types unchanged.

    A safetensors file is copied as it is. A pickle is opened with PyTorch's restricted unpickler, which knows tensors
    and plain containers and runs nothing else; of a training checkpoint the ``state_dict`` is taken.

    Raises:
        InputError: the file is missing, damaged, or something else than weights; or the disk is full.
    """
    if not source.is_file():
        raise InputError(f"{source}: checkpoint not found; correct clip.pretrained")
    if source.suffix not in SUFFIXES:
        raise InputError(f"{source}: a checkpoint is one of {', '.join(SUFFIXES)}; convert it")
    if source.suffix == ".safetensors":
        shapes_of(source)
        with open(source, "rb") as original, open(target, "wb") as copy:
            shutil.copyfileobj(original, copy, 1 << 20)
        return
    write(_unpickle(source), target)


def write(weights: Mapping[str, torch.Tensor], target: Path) -> None:
    """Write weights as safetensors.

    Raises:
        InputError: the disk is full.
    """
    try:
        save_file(dict(weights), target, metadata={"format": "pt"})
    except SafetensorError as error:  # its word for a full disk, which is no OSError
        raise InputError(f"{target.parent}: cannot write {target.name} ({error}); make room there") from None
    target.chmod(0o644)  # safetensors keeps it to the owner


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a safetensors file; only its header is read.

    Raises:
        InputError: the file is no safetensors file, or is cut short.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise _damaged(path, error) from None


def require_same_shapes(model: torch.nn.Module, weights: Path, source: Path) -> None:
    """Refuse weights that open_clip has silently interpolated to fit `model` (position embeddings of another size).

    Raises:
        InputError: names the tensor and both shapes.
    """
    shapes = shapes_of(weights)
    for name, tensor in model.state_dict().items():
        ours = tuple(tensor.shape)
        theirs = shapes.get(name) or shapes.get(name.removeprefix("text."), ours)  # older layouts have no "text."
        if theirs != ours and tensor.numel() > 1:  # scalars come as () and as (1,)
            raise InputError(
                f"{source}: {name} is {theirs}, the architecture's is {ours}; the checkpoint belongs to another image "
                f"size or context length: correct clip.model"
            )


def _unpickle(path: Path) -> dict[str, torch.Tensor]:
    if _is_torchscript(path):
        raise InputError(
            f"{path}: is a TorchScript archive, a program rather than weights; take the checkpoint as safetensors "
            f"(an OpenAI model: open_clip_model.safetensors of the hub repository of its tag `openai`)"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or damaged pickle raises anything
        raise _damaged(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    if isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise _damaged(path, f"holds a {type(content).__name__}, not a dictionary of weights")
    return {str(name).removeprefix("module."): _plain(path, name, tensor) for name, tensor in content.items()}


def _plain(path: Path, name: Any, tensor: Any) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise _damaged(path, f"{name!r} is a {type(tensor).__name__}, not a tensor")
    return tensor.detach().clone().contiguous()  # safetensors refuses tensors that share memory


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _damaged(path: Path, reason: object) -> InputError:
    return InputError(f"{path}: not a usable checkpoint ({' '.join(str(reason).split())[:300]}); fetch it again")
