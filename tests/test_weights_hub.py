"""Pinning a model over HTTP, from a server that speaks the hub's protocol, and what comes of its failures."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import open_clip
import pytest
import tiny_clip
import torch
from hub_server import COMMIT, Hub, serve_hub
from safetensors.torch import load_file

from stages.clip import load_clip, read_clip_config

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a hub repository of an open_clip model has."""
    directory = tmp_path_factory.mktemp("repository")
    tiny_clip.build(tiny_clip.config(tiny_clip.VIT), directory)
    return directory


#: A tokenizer of whole words, in the hub's form.
TOKENIZER = {
    "tokenizer.json": {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "decoder": None, "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"[PAD]": 0, "[UNK]": 1, "cat": 2, "dog": 3}, "unk_token": "[UNK]"},
    },
    "tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 5,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def hub(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    config = (repository / "open_clip_config.json").read_bytes()
    weights = (repository / "open_clip_model.safetensors").read_bytes()
    pickled = tmp_path_factory.mktemp("pickled") / "weights.bin"
    torch.save(load_file(repository / "open_clip_model.safetensors"), pickled)
    tokenizer_model = tmp_path_factory.mktemp("tokenizer_model")
    model_cfg = tiny_clip.config(tiny_clip.VIT, custom_text=True)
    model_cfg["text_cfg"] |= {"hf_tokenizer_name": "org/tokenizer", "vocab_size": 8, "context_length": 5}
    tiny_clip.build(model_cfg, tokenizer_model)
    both = {"open_clip_config.json": config, "open_clip_model.safetensors": weights}
    with serve_hub({
        "org/good": both, "org/truncated": both, "org/flaky": both, "org/silent": both,
        "org/pickled": {"open_clip_config.json": config, "open_clip_pytorch_model.bin": pickled.read_bytes()},
        "org/named": {"pytorch_model.bin": pickled.read_bytes()},
        "org/own-tokenizer": {file.name: file.read_bytes() for file in tokenizer_model.iterdir()},
        "org/tokenizer": {"README.md": b"", **{name: json.dumps(file).encode() for name, file in TOKENIZER.items()}},
        "org/config-only": {"open_clip_config.json": config}, "org/other": {"config.json": b"{}"},
    }) as server:  # fmt: skip
        yield server


#: Runs the stage for each model of its argument in a directory of its own; prints what came of it.
DRIVER = """
import json, os, sys, time
from pathlib import Path
import open_clip
from huggingface_hub import constants
from stages import hub
from stages.errors import InputError, OutsideError
from stages.weights.config import Clip
from stages.weights.stage import pin_clip
task = json.loads(sys.argv[1])
open_clip.factory._MODEL_CONFIGS["tiny-vit"] = task["architecture"]
for tag, repository in task["tags"].items():
    open_clip.pretrained._PRETRAINED.setdefault("tiny-vit", {})[tag] = open_clip.pretrained._pcfg(
        hf_hub=repository, mean=(0.1, 0.2, 0.3))
hub.TIMEOUT = 1
constants.DOWNLOAD_CHUNK_SIZE = 2**16  # smaller than the weights, as it is for real ones
start = Path.cwd()
for name, clip in task["models"].items():
    (start / name).mkdir()
    os.chdir(start / name)
    began, outcome = time.monotonic(), "ok"
    try:
        pin_clip(Clip.model_validate(clip))
    except (InputError, OutsideError) as error:
        outcome = f"{type(error).__name__}: {error}"
    print(json.dumps([name, outcome, time.monotonic() - began]))
"""


def run_stage(
    models: dict[str, tuple[str, str | None]], endpoint: str, where: Path, **environment: str
) -> dict[str, str]:
    """The outcome of pinning each of `models`, by name, in a process whose hub is `endpoint`."""
    task = {
        "architecture": tiny_clip.config(tiny_clip.VIT),
        "tags": {"tiny_tag": "org/good/", "named_tag": "org/named/pytorch_model.bin", "lost_tag": "org/lost/"},
        "models": {name: {"model": model, "pretrained": tag} for name, (model, tag) in models.items()},
    }
    where.mkdir(exist_ok=True)
    environment = {
        **os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(where.parent / "cache"), "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **environment,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(task)], cwd=where, env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warnings, no bars: one line is what the user gets
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(seconds < 20 for _, _, seconds in outcomes), outcomes
    return {name: outcome for name, outcome, _ in outcomes}


@pytest.fixture(scope="module")
def runs(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Directories and outcomes of one process that pins one model after the other."""
    where = tmp_path_factory.mktemp("hub") / "runs"
    names = ("good", "pickled", "flaky", "lost", "other", "config-only", "gated", "down", "silent", "truncated",
             "own-tokenizer")  # fmt: skip
    models: dict[str, tuple[str, str | None]] = {name: (f"hf-hub:org/{name}", None) for name in names}
    models |= {tag: ("tiny-vit", tag) for tag in ("tiny_tag", "named_tag", "lost_tag")}
    return where, run_stage(models, hub.address, where)


def test_hub_model(runs, repository):
    where, outcomes = runs
    assert outcomes["good"] == "ok"
    pinned = where / "good/models/clip"
    files = sorted(pinned.iterdir())
    assert [p.name for p in files] == ["config.json", "model.safetensors", "open_clip_config.json"]
    assert not any(p.is_symlink() for p in files)
    assert (pinned / "model.safetensors").read_bytes() == (repository / "open_clip_model.safetensors").read_bytes()
    config = read_clip_config(pinned)
    assert config.source == f"hf-hub:org/good@{COMMIT}/open_clip_model.safetensors"
    clip = load_clip(pinned)
    assert clip.mean == (0.4, 0.5, 0.6) and clip.interpolation == "bilinear" and clip.image_size == (32, 32)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{repository}")
    model.eval()
    pixels, batch = tiny_clip.pictures(1, 32)
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_images(pixels), model.encode_image(batch, normalize=True))


def test_architecture_and_tag_over_the_hub(runs):
    where, outcomes = runs
    assert outcomes["tiny_tag"] == outcomes["named_tag"] == "ok"
    for tag, name in (("tiny_tag", "good@{}/open_clip_model.safetensors"), ("named_tag", "named@{}/pytorch_model.bin")):
        config = read_clip_config(where / tag / "models/clip")
        assert (config.model, config.pretrained) == ("tiny-vit", tag)
        assert config.source == f"hf-hub:org/{name.format(COMMIT)}"
        clip = load_clip(where / tag / "models/clip")
        assert clip.mean == (0.1, 0.2, 0.3) and clip.interpolation == "bicubic"  # the tag's, not the repository's


def test_pickled_weights_of_the_hub_are_converted(runs, repository):
    where, outcomes = runs
    assert outcomes["pickled"] == "ok"
    pinned = load_file(where / "pickled/models/clip/model.safetensors")
    weights = load_file(repository / "open_clip_model.safetensors")
    assert pinned.keys() == weights.keys() and all(torch.equal(pinned[name], weights[name]) for name in weights)


def test_tokenizer_of_the_hub_is_pinned(runs):
    where, outcomes = runs
    if importlib.util.find_spec("transformers") is None:
        message = "InputError: clip.model: this model needs the package transformers; install it with pip"
        assert outcomes["own-tokenizer"] == message
        return
    assert outcomes["own-tokenizer"] == "ok"
    directory = where / "own-tokenizer/models/clip"
    assert {p.name for p in directory.iterdir()} == {
        "config.json", "model.safetensors", "open_clip_config.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    clip = load_clip(directory)
    assert clip._tokenize(["dog cat bird"]).tolist() == [[3, 2, 1, 0, 0]]
    assert clip.encode_texts(["cat", "dog"]).shape == (2, 16)


def test_interrupted_download_goes_on(runs, hub):
    _, outcomes = runs
    assert outcomes["flaky"] == "ok"
    assert hub.broken_off >= 2  # `flaky` once, `truncated` again and again


def test_failures_of_the_hub(runs, hub):
    where, outcomes = runs
    page = hub.address
    put = "into one directory and set clip.model: local-dir:/path/to/directory, clip.pretrained: null"
    assert outcomes["lost"].startswith(f"InputError: clip.model: {page}/org/lost does not exist or is private")
    assert outcomes["lost_tag"].startswith(f"InputError: clip.model: {page}/org/lost does not exist or is private")
    assert outcomes["other"].startswith(f"InputError: clip.model: {page}/org/other has no open_clip_config.json")
    assert "config-only has no open_clip_model.safetensors or open_clip_pytorch_model.bin" in outcomes["config-only"]
    assert outcomes["gated"].startswith(f"InputError: clip.model: {page}/org/gated wants its terms accepted")
    for name, reason in (("down", "503"), ("silent", "timed out"), ("truncated", "breaks off")):
        assert outcomes[name].startswith(f"OutsideError: {page}/org/{name}: cannot fetch open_clip_")
        assert reason in outcomes[name] and put in outcomes[name]
        assert "\n" not in outcomes[name]
        assert not list((where / name).rglob("*"))[1:]  # at most the empty models/


def test_unreachable_hub_and_its_cache(runs, hub, tmp_path_factory):
    where, _ = runs
    free = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    endpoint = f"http://127.0.0.1:{free.server_address[1]}"
    free.server_close()  # now nobody listens there
    models = {"new": ("hf-hub:org/new", None), "tag": ("tiny-vit", "lost_tag"), "again": ("hf-hub:org/good", None)}
    outcomes = run_stage(models, endpoint, where.parent / "refused")
    assert outcomes["new"].startswith(f"OutsideError: {endpoint}/org/new: cannot fetch open_clip_config.json (")
    assert "set clip.model: local-dir:/path/to/directory" in outcomes["new"]
    assert outcomes["tag"].endswith(
        f"or download open_clip_model.safetensors from {endpoint}/org/lost elsewhere and set clip.pretrained: "
        f"/path/to/open_clip_model.safetensors"
    )
    assert outcomes["again"] == "ok"  # fetched before: the hub's cache on this machine has it
    first, second = (read_clip_config(where.parent / name / "models/clip") for name in ("runs/good", "refused/again"))
    assert first == second


def test_offline(runs, hub):
    where, _ = runs
    asked = len(hub.requests)
    models = {"new": ("hf-hub:org/new", None), "again": ("hf-hub:org/good", None)}
    outcomes = run_stage(models, hub.address, where.parent / "offline", CONCEPTBITS_OFFLINE="1")
    assert len(hub.requests) == asked
    assert outcomes["again"] == "ok"
    assert outcomes["new"].startswith(f"InputError: clip.model: {hub.address}/org/new is not in the hub's cache (")
    assert "and CONCEPTBITS_OFFLINE is set, so it is not fetched; unset it, or download open_clip_" in outcomes["new"]
