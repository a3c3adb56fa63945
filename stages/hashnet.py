"""The hashing network, a head on cached features, and the folder ``models/hashnet`` of it or of a whole backbone.

``model.safetensors`` and ``config.json``, which says what the network is, are all that is needed to load it elsewhere.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from stages import backbone
from stages.artifacts import HASHNET, Provenance, damaged, read_json, replacing_directory

#: For a reader of ``config.json`` without this pipeline.
ARCHITECTURE = (
    "unit-length features (n, dim) * sqrt(dim) -> layers.0 Linear(dim, hidden) -> layers.1 BatchNorm1d(hidden) -> ReLU "
    "-> layers.3 Linear(hidden, bits) -> tanh; a bit is 1 where the output is >= 0"
)


@dataclass(frozen=True)
class HashNetConfig:
    """Sizes of the network: feature dimension, hidden units, code length; and the method that trained it."""

    dim: int
    hidden: int
    bits: int
    method: str


class HashNet(nn.Module):
    """Features (n, dim) to relaxed codes (n, bits) in [-1, 1]; their sign is the hash code.

    Attributes:
        dropout: hides some of the features in training, none unless its `p` is set.
    """

    #: Rows in a batch of :func:`relaxed_codes`.
    CHUNK = 8192

    def __init__(self, config: HashNetConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(0.0)
        self.layers = nn.Sequential(
            nn.Linear(config.dim, config.hidden),
            nn.BatchNorm1d(config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.bits),
        )

    def forward(self, features: Tensor) -> Tensor:
        # Unit rows have entries of about 1/sqrt(dim); at unit variance the first layer learns at the usual rates.
        return torch.tanh(self.layers(self.dropout(features * self.config.dim**0.5)))


#: What turns features (a head) or images (a backbone) into codes.
Network = HashNet | backbone.BackboneNet


@torch.inference_mode()
def relaxed_codes(net: Network, inputs: Tensor, batch_size: int | None = None) -> Tensor:
    """Codes (n, bits) in [-1, 1], in evaluation mode, in batches of `batch_size` (None: the network's own).

    Args:
        inputs: on the network's device: features float32 (n, dim) for a head, images uint8 (n, 3, size, size), as of
            :func:`stages.backbone.evaluation_pixels`, for a backbone.
    """
    training = net.training
    net.eval()
    codes = torch.cat([net(part) for part in inputs.split(batch_size or net.CHUNK)])
    net.train(training)
    return codes


def save_hashnet(net: Network, provenance: Provenance, directory: Path = HASHNET) -> None:
    """Write the network's folder atomically."""
    with replacing_directory(directory) as temporary:
        save_file({name: value.contiguous().cpu() for name, value in net.state_dict().items()},
                  temporary / "model.safetensors")  # fmt: skip
        kind, architecture = "head", ARCHITECTURE
        if isinstance(net, backbone.BackboneNet):
            kind, architecture = "backbone", net.config.architecture
        config = {"network": kind, **asdict(net.config), "architecture": architecture, "provenance": asdict(provenance)}
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_hashnet(directory: Path = HASHNET) -> tuple[Network, Provenance]:
    """Load a network's folder, in evaluation mode: a head or a backbone, with nothing but what lies there.

    Raises:
        InputError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    content = read_json(directory / "config.json")
    try:
        provenance = Provenance(**content.pop("provenance"))
        content.pop("architecture", None)
        kind = content.pop("network")
        if kind not in ("head", "backbone"):
            raise KeyError(f"network '{kind}'")
        # Read, not mapped into memory: from a broken disk the kernel would end a process that looks at a mapping.
        weights = load((directory / "model.safetensors").read_bytes())
        net = _head(content, weights) if kind == "head" else _backbone(content, weights)
    except (FileNotFoundError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise damaged(directory, f"not a hashing network ({error})") from None
    except OSError as error:
        raise damaged(directory, error) from None
    return net.eval(), provenance


def _head(config: dict[str, Any], weights: dict[str, Tensor]) -> HashNet:
    net = HashNet(HashNetConfig(**config))
    net.load_state_dict(weights)
    return net


def _backbone(config: dict[str, Any], weights: dict[str, Tensor]) -> backbone.BackboneNet:
    found = backbone.BackboneConfig(**{**config, "mean": tuple(config["mean"]), "std": tuple(config["std"])})
    inner = {name.removeprefix("backbone."): value for name, value in weights.items() if name.startswith("backbone.")}
    net = backbone.BackboneNet(found, backbone.load_backbone(found.model, found.tower, inner))
    net.load_state_dict(weights)
    return net
