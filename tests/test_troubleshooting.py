"""Each error that ``docs/troubleshooting.md`` quotes is what the command line says when things are as the page says."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from picture import picture
from stage_runner import ROOT, copy, inputs, link, prepare

from stages.artifacts import PROVENANCE_KEY
from stages.hdf5 import read_text, write_text
from stages.tables import fixed_size_lists

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "troubleshooting.md"


def nothing(directory: Path, tiny_run: Path) -> None:
    """No file beside ``params.yaml``."""


def needs(stage: str, *missing: str) -> Callable[[Path, Path], None]:
    """All that a stage reads is there, but for what is `missing`."""
    return lambda directory, tiny_run: link(
        [path for path in inputs(stage) if path not in missing], tiny_run, directory
    )


def without_params(directory: Path, tiny_run: Path) -> None:
    (directory / "params.yaml").unlink()


def photos(directory: Path, tiny_run: Path) -> None:
    (directory / "photos").mkdir()
    for number in range(20):
        (directory / f"photos/{number:02d}.png").write_bytes(picture(number) if number % 4 else b"no image")


def codes_of_other_data(directory: Path, tiny_run: Path) -> None:
    link([path for path in inputs("evaluate") if path != "data/codes.h5"], tiny_run, directory)
    copy(["data/codes.h5"], tiny_run, directory)
    with h5py.File(directory / "data/codes.h5", "r+") as file:
        provenance = re.sub(r'"dataset": "\w+"', f'"dataset": "{"5" * 64}"', read_text(file, PROVENANCE_KEY))
        write_text(file, PROVENANCE_KEY, provenance)


def cut_off(stage: str, path: str) -> Callable[[Path, Path], None]:
    def run(directory: Path, tiny_run: Path) -> None:
        needs(stage, path)(directory, tiny_run)
        copy([path], tiny_run, directory)
        (directory / path).write_bytes((directory / path).read_bytes()[:-1000])

    return run


def damaged_clip(directory: Path, tiny_run: Path) -> None:
    needs("mine", "models/clip")(directory, tiny_run)
    copy(["models/clip"], tiny_run, directory)
    with open(directory / "models/clip/model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")


def no_concepts(directory: Path, tiny_run: Path) -> None:
    needs("train", "data/similarity.parquet")(directory, tiny_run)
    table = pq.read_table(tiny_run / "data/similarity.parquet")
    empty = fixed_size_lists(np.empty((len(table), 0), np.float32))
    pq.write_table(table.set_column(1, "factor", empty), directory / "data/similarity.parquet")


def index_of_other_codes(directory: Path, tiny_run: Path) -> None:
    copy(["data/index", "models/hashnet"], tiny_run, directory)
    link(["models/clip"], tiny_run, directory)
    config = directory / "models/hashnet/config.json"
    config.write_text(config.read_text().replace('"lr": 0.003', '"lr": 0.004'))
    (directory / "photo.png").write_bytes(picture(0))


@dataclass(frozen=True)
class Scene:
    """How things are, and what is run."""

    command: str
    make: Callable[[Path, Path], None] = nothing
    changes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    offline: bool = False


#: By the headings of the page.
SCENES = {
    "The wrong directory": Scene("train", without_params),
    "An unknown key": Scene("train", changes={"datset": {"name": "cifar10"}}),
    "A number that YAML takes for text": Scene("train", changes={"train": {"lr": "1e-3"}}),
    "A value that is not allowed": Scene("train", changes={"bits": 12}),
    "A missing artifact": Scene("train", needs("train", "data/components.h5")),
    "Artifacts of two data sets": Scene("evaluate", codes_of_other_data),
    "A damaged artifact": Scene("encode", cut_off("encode", "data/features.h5")),
    "A damaged model": Scene("mine", damaged_clip),
    "No such data": Scene("download", changes={"dataset": {"name": "imagefolder", "path": "/path/to/images"}}),
    "Too many unreadable images": Scene("download", photos, {"dataset": {"name": "imagefolder", "path": "photos"}}),
    "Too few images for the protocol": Scene("download", changes={"dataset": {"train": 400}}),
    "No concept kept": Scene("mine", needs("mine"), {"concepts": {"min_frequency": 20.0}}),
    "A method without its text side": Scene("train", no_concepts, {"method": "uhscm"}),
    "A CLIP with the wrong activation": Scene(
        "weights", changes={"clip": {"model": "ViT-B-32", "pretrained": "openai"}}
    ),
    "No network": Scene("download", changes={"dataset": {"name": "cifar10"}}, offline=True),
    "More components than images": Scene("components", needs("components"), {"components": {"fine": 1000}}),
    "No such device": Scene("encode", needs("encode"), {"device": "cuda"}),
    "A full disk": Scene("encode", needs("encode"), options={"max_file_size": 2000}),
    "An index of another network": Scene("search --image photo.png", index_of_other_codes),
    "A search by an id that is not there": Scene("search --id 100000", index_of_other_codes),
}  # fmt: skip


def quoted() -> dict[str, str]:
    """The error line under each heading."""
    parts = re.split(r"^## (.*)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = {}
    for heading, text in zip(parts[::2], parts[1::2], strict=True):
        block = re.search(r"^    error: (.*(?:\n     .*)*)", text, re.MULTILINE)
        found[heading] = re.sub(r"\n\s+", " ", block[1])
    return found


def test_every_heading_has_a_scene():
    assert list(quoted()) == list(SCENES)


@pytest.mark.parametrize("heading", SCENES)
def test_the_command_line_says_what_the_page_quotes(heading, tmp_path, tiny_run, run_stages):
    scene = SCENES[heading]
    directory = prepare(tmp_path / "project", scene.changes)
    scene.make(directory, tiny_run)
    command = scene.command.split()
    if scene.offline:  # which the environment says, and that of `run_stages` is already made
        environment = os.environ | {"CONCEPTBITS_OFFLINE": "1"}
        command = [sys.executable, "-m", "stages", *command]
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
        said = done.stderr.removeprefix("error: ").rstrip("\n")
    else:
        said = run_stages(directory, *command, **scene.options).error()
    pattern = ".+".join(map(re.escape, quoted()[heading].split("...")))
    assert re.fullmatch(pattern, said), said
