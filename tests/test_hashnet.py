"""The hashing network: its folder, what it needs to be loaded elsewhere, and its codes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.artifacts import HASHNET, Provenance
from stages.errors import InputError
from stages.hashnet import HashNet, HashNetConfig, load_hashnet, relaxed_codes, save_hashnet


def random_net(dim: int = 5, hidden: int = 7, bits: int = 8) -> HashNet:
    """A network whose batch statistics are not those of the start."""
    torch.manual_seed(3)
    net = HashNet(HashNetConfig(dim, hidden, bits, "uhscm")).train()
    net(torch.randn(20, dim))
    return net


def test_a_network_survives_saving_and_loading(tmp_path: Path) -> None:
    net, origin = random_net(), Provenance("train", "d", "e", {"bits": 8}, {"torch": "2"})
    save_hashnet(net, origin, tmp_path / "net")
    loaded, provenance = load_hashnet(tmp_path / "net")
    assert provenance == origin
    assert loaded.config == net.config
    features = torch.randn(9, 5)
    torch.testing.assert_close(relaxed_codes(loaded, features), relaxed_codes(net, features), rtol=0, atol=0)


def test_codes_are_made_in_evaluation_mode_whatever_the_batches() -> None:
    net, features = random_net(), torch.randn(10, 5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    codes = relaxed_codes(net, features)
    assert net.training
    assert codes.abs().max() <= 1
    for batch_size in (1, 3, 10):
        torch.testing.assert_close(relaxed_codes(net, features, batch_size), codes)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert relaxed_codes(net, features[:0]).shape == (0, 8)
    net.eval()
    relaxed_codes(net, features)
    assert not net.training


def test_features_are_hidden_in_training_alone() -> None:
    """As many as asked, the others made larger, so that the sum is the same on the mean."""
    net, features = random_net(dim=400), torch.ones(50, 400)
    seen: list[torch.Tensor] = []
    net.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0] / 20))
    net.train()(features)
    net.dropout.p = 0.75
    net(features)
    net.eval()(features)
    assert torch.equal(seen[0], features) and torch.equal(seen[2], features)
    assert set(seen[1].unique().tolist()) == {0.0, 4.0}
    assert (seen[1] == 0).float().mean().item() == pytest.approx(0.75, abs=0.01)


def _edit_config(**changes: Any) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        config.update(changes)
        config = {key: value for key, value in config.items() if value is not ...}
        (directory / "config.json").write_text(json.dumps(config))

    return damage


def _cut(name: str, size: int) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        (directory / name).write_bytes((directory / name).read_bytes()[:size])

    return damage


NETWORK_DAMAGES: dict[str, Callable[[Path], None]] = {
    "nothing": shutil.rmtree,
    "no config": lambda directory: (directory / "config.json").unlink(),
    "no weights": lambda directory: (directory / "model.safetensors").unlink(),
    "half a config": _cut("config.json", 20),
    "half the weights": _cut("model.safetensors", 300),
    "no byte of weights": _cut("model.safetensors", 0),
    "a list": lambda directory: (directory / "config.json").write_text("[1]"),
    "other bits": _edit_config(bits=16),
    "no bits": _edit_config(bits=...),
    "bits in words": _edit_config(bits="eight"),
    "negative bits": _edit_config(bits=-8),
    "another key": _edit_config(more=1),
    "no provenance": _edit_config(provenance=...),
    "another provenance": _edit_config(provenance=[1, 2]),
}


@pytest.mark.parametrize("name", NETWORK_DAMAGES)
def test_a_damaged_network_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    save_hashnet(random_net(), Provenance("train"))
    NETWORK_DAMAGES[name](HASHNET)
    with pytest.raises(InputError, match="dvc repro train") as error:
        load_hashnet()
    assert str(error.value).startswith(str(HASHNET))
    assert "\n" not in str(error.value)
