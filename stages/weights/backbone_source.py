"""Where the published weights of ``backbone.model`` come from."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stages import hub
from stages.artifacts import sha256
from stages.backbone import TIMM
from stages.download import cache
from stages.download.transfer import Unavailable, discard, download
from stages.errors import InputError, OutsideError
from stages.offline import offline
from stages.weights import checkpoint

#: More than this is no checkpoint of torchvision (VGG-19's has 575 million bytes).
MAX_BYTES = 2 * 10**9


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine, and where it came from."""

    path: Path
    origin: str


def find(model: str, weights: str) -> Checkpoint:
    """Find, and fetch where it is not on this machine, what `weights` names: ``imagenet`` or a file.

    Raises:
        InputError: there is no such file, or none is published.
        OutsideError: the place that publishes it does not give it.
    """
    if weights != "imagenet":
        path = Path(weights).expanduser()
        if not path.is_file():
            raise InputError(
                f"{path}: checkpoint not found; set backbone.weights to imagenet, null, or the path of a file with one "
                f"of {', '.join(checkpoint.SUFFIXES)}"
            )
        return Checkpoint(path, str(path))
    return _from_timm(model.removeprefix(TIMM)) if model.startswith(TIMM) else _from_torchvision(model)


def published_url(model: str) -> str:
    """Where torchvision publishes the weights of `model`; the file's name has the begin of its SHA-256."""
    from torchvision.models import get_model_weights

    return get_model_weights(model).IMAGENET1K_V1.url


def _from_torchvision(model: str) -> Checkpoint:
    url = published_url(model)
    name = Path(urlsplit(url).path).name
    begin = re.search(r"-([0-9a-f]{8,})\.", name)[1]
    cached = cache.path_of(url)
    otherwise = f"download {url} elsewhere and set backbone.weights: /path/to/{name}"
    with cache.locked(cached):
        if cached.exists() and sha256(cached).startswith(begin):
            return Checkpoint(cached, url)
        if variable := offline():
            raise InputError(
                f"backbone.weights: {name} is not in the cache ({cached.parent}), and {variable} is set, so it is not "
                f"fetched; unset it, or {otherwise}"
            )
        part = cached.with_name(f"{cached.name}.part")
        try:
            download(url, part, MAX_BYTES, verifiable=True)
        except Unavailable as reason:
            raise OutsideError(
                f"{url}: cannot be fetched ({reason}); repeat it later to continue, or {otherwise}"
            ) from None
        if not (found := sha256(part)).startswith(begin):
            discard(part)
            raise OutsideError(
                f"{url}: SHA-256 is {found[: len(begin)]}..., its name says {begin}; it was deleted, repeat it later, "
                f"or {otherwise}"
            )
        os.replace(part, cached)
        discard(part)
    return Checkpoint(cached, url)


def _from_timm(name: str) -> Checkpoint:
    import timm

    settings = timm.get_pretrained_cfg(name)
    repository = settings.hf_hub_id if settings else None
    if not repository:
        raise InputError(
            f"backbone.weights: timm {timm.__version__} publishes none for '{name}'; set a checkpoint file, or null "
            f"for random ones"
        )
    names = [settings.hf_hub_filename] if settings.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    otherwise = (
        f"download {names[0]} from {hub.page(repository, 'model')} elsewhere and set backbone.weights: "
        f"/path/to/{names[0]}"
    )
    found = hub.download(hub.Repository(repository, "model", "backbone.model", otherwise), names)
    return Checkpoint(found.path, str(found))
