"""The hashing network, a head on cached features, and its folder ``models/hashnet``.

``model.safetensors`` and ``config.json``, which has :data:`ARCHITECTURE`, are all that is needed to load it elsewhere.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

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
    """Features (n, dim) to relaxed codes (n, bits) in [-1, 1]; their sign is the hash code."""

    def __init__(self, config: HashNetConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(
            nn.Linear(config.dim, config.hidden),
            nn.BatchNorm1d(config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.bits),
        )

    def forward(self, features: Tensor) -> Tensor:
        # Unit rows have entries of about 1/sqrt(dim); at unit variance the first layer learns at the usual rates.
        return torch.tanh(self.layers(features * self.config.dim**0.5))


@torch.inference_mode()
def relaxed_codes(net: HashNet, features: Tensor, batch_size: int = 8192) -> Tensor:
    """Codes (n, bits) in [-1, 1] of features (n, dim), in evaluation mode, in batches."""
    training = net.training
    net.eval()
    codes = torch.cat([net(part) for part in features.split(batch_size)])
    net.train(training)
    return codes


def save_hashnet(net: HashNet, provenance: Provenance, directory: Path = HASHNET) -> None:
    """Write the network's folder atomically."""
    with replacing_directory(directory) as temporary:
        save_file({name: value.contiguous().cpu() for name, value in net.state_dict().items()},
                  temporary / "model.safetensors")  # fmt: skip
        config = {**asdict(net.config), "architecture": ARCHITECTURE, "provenance": asdict(provenance)}
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_hashnet(directory: Path = HASHNET) -> tuple[HashNet, Provenance]:
    """Load a network's folder, in evaluation mode.

    Raises:
        InputError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    content = read_json(directory / "config.json")
    try:
        provenance = Provenance(**content.pop("provenance"))
        content.pop("architecture", None)
        net = HashNet(HashNetConfig(**content))
        net.load_state_dict(load_file(directory / "model.safetensors"))
    except (OSError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise damaged(directory, f"not a hashing network ({error})") from None
    return net.eval(), provenance
