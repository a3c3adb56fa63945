"""Whatever the user or the disk gets wrong ends with one clear line, exit code 2, and nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import h5py
import pyarrow.parquet as pq
import pytest
from faults import faults
from picture import picture
from stage_runner import READ_WITH, copy, inputs, leftovers, link, nothing_made, prepare

from stages.__main__ import STAGES
from stages.hdf5 import write_text


@pytest.fixture
def directory(tmp_path):
    return prepare(tmp_path / "run")


# ---- parameters (their words: test_params.py)


@pytest.mark.parametrize(("changes", "words"), [
    ({"bitz": 32}, "params.yaml: unknown key 'bitz'; did you mean 'bits'?"),
    ({"train": {"epoch": 1}}, "params.yaml: unknown key 'train.epoch'; did you mean 'epochs'?"),
    ({"train": {"dsch": {"roundd": 1}}}, "params.yaml: unknown key 'train.dsch.roundd'; did you mean 'round'?"),
    ({"method": "uhcsm"}, "params.yaml: method: 'uhcsm' is not allowed: input should be 'uhscm', 'dsch', "
     "'fused', 'greedyhash', 'bihalf', 'cibhash', 'sdc' or 'duh_eg'"),
    ({"dataset": {"name": "mnist"}}, "params.yaml: dataset.name: 'mnist' is not allowed: input should be 'scenes', "
     "'cifar10', 'cifar100', 'fashion_mnist', 'mirflickr25k', 'nuswide', 'coco2014', 'coco2017', 'imagefolder', "
     "'parquet', 'webdataset', 'csv' or 'embeddings'"),
    ({"device": "gpu"}, "params.yaml: device: 'gpu' is not allowed: input should be 'auto', 'cuda', 'mps' or 'cpu'"),
    ({"concepts": {"prompt": "a photo"}},
     "params.yaml: concepts.prompt: 'a photo' is not allowed: must contain {concept} once"),
    ({"evaluate": {"precision_at": [1, 0]}},
     "params.yaml: evaluate.precision_at.1: 0 is not allowed: input should be greater than 0"),
    *(({"bits": bits}, f"params.yaml: bits: {bits!r} is not allowed: must be a positive multiple of 8")
      for bits in (0, -8, 12)),
    *(({"bits": bits}, f"params.yaml: bits: {bits!r} is not allowed: input should be a valid integer")
      for bits in ("32", True)),
])  # fmt: skip
@pytest.mark.parametrize("stage", ["download", "train"])
def test_bad_parameters(stage, changes, words, directory, run_stages):
    """A stage checks the keys of the others as well: better now than after an hour."""
    prepare(directory, changes)
    assert run_stages(directory, stage).error() == words
    assert nothing_made(directory, stage)


@pytest.mark.parametrize(("content", "words"), [
    ("bits: [", "params.yaml: not valid YAML ("), ("", "params.yaml: must be a mapping"),
    (None, "params.yaml: not found in "), ("bits: 32", "params.yaml: key 'dataset' is missing; add it"),
])  # fmt: skip
def test_broken_parameters_file(content, words, directory, run_stages):
    (directory / "params.yaml").unlink()
    if content is not None:
        (directory / "params.yaml").write_text(content)
    assert run_stages(directory, "download").error().startswith(words)


def test_absent_device(directory, run_stages, tiny_run):
    prepare(directory, {"device": "mps" if sys.platform != "darwin" else "cuda"})
    link(inputs("encode"), tiny_run, directory)
    message = run_stages(directory, "encode").error()
    assert message.startswith("device: ") and "not available on this machine; take auto, or one of:" in message


# ---- data


def photos(directory, good, bad):
    directory.mkdir()
    for number in range(good):
        (directory / f"good-{number:03d}.png").write_bytes(picture(number))
    for number in range(bad):
        (directory / f"bad-{number}.png").write_bytes(picture(number)[:-40] if number % 2 else b"not an image")
    return directory


def test_more_corrupt_images_than_tolerated(directory, run_stages):
    path = photos(directory / "photos", 40, 5)
    prepare(directory, {"dataset": {"name": "imagefolder", "path": str(path), "max_skipped": 0.1}})
    message = run_stages(directory, "download").error()
    assert message == (
        f"{path}: 5 of 45 images cannot be read, more than dataset.max_skipped (0.1) allows; see reports/skipped.csv"
    )
    listed = (directory / "reports/skipped.csv").read_text().splitlines()
    assert listed[0] == "source,reason" and len(listed) == 6 and all(line.startswith("bad-") for line in listed[1:])
    assert not (directory / "data/images").exists()
    assert all(name.startswith(".resume/") for name in leftovers(directory))


def test_tolerated_corrupt_images_are_listed(directory, run_stages):
    path = photos(directory / "photos", 40, 5)
    data = {"path": str(path), "max_skipped": 0.2, "queries": 5, "database": 35, "train": 20}
    prepare(directory, {"dataset": {"name": "imagefolder"} | data})
    run_stages(directory, "download").check()
    assert len((directory / "reports/skipped.csv").read_text().splitlines()) == 6
    assert json.loads((directory / "data/dataset.json").read_text())["skipped"] == 5


def test_no_concept_kept(directory, run_stages, tiny_run):
    link(inputs("mine"), tiny_run, directory)
    prepare(directory, {"concepts": {"min_frequency": 1000.0, "max_frequency": None}})
    message = run_stages(directory, "mine").error()
    assert message.startswith("no concept kept: ") and "(concepts.min_frequency)" in message and "loosen" in message
    prepare(directory, {"concepts": {"min_frequency": 0.0, "max_frequency": 1e-9}})
    assert "(concepts.max_frequency)" in run_stages(directory, "mine").error()
    assert nothing_made(directory, "mine")


def test_more_components_than_images(directory, run_stages, tiny_run):
    link(inputs("components"), tiny_run, directory)
    prepare(directory, {"components": {"fine": 201}})
    message = run_stages(directory, "components").error()
    assert message == "components.fine: 201 components for 200 training images; set at most 200"
    assert nothing_made(directory, "components")


# ---- artifacts that do not belong together


def claim(path, **changes):
    """Let an artifact say that it was made from something else."""
    if path.is_dir():
        file = next(iter(sorted(path.glob("*.parquet"))), path / "config.json")
        claim(file, **changes)
    elif path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            write_text(file, "conceptbits", json.dumps(json.loads(file.attrs["conceptbits"]) | changes))
    elif path.suffix == ".parquet":
        table = pq.read_table(path)
        metadata = dict(table.schema.metadata)
        metadata[b"conceptbits"] = json.dumps(json.loads(metadata[b"conceptbits"]) | changes).encode()
        pq.write_table(table.replace_schema_metadata(metadata), path)
    else:
        content = json.loads(path.read_text())
        if path.name == "dataset.json":
            content["digest"] = changes["dataset"]
        else:
            (content["run"][0] if "run" in content else content["provenance"]).update(changes)
        path.write_text(json.dumps(content))


#: What says nothing of where it is from, or has nothing beside it in that stage to be compared with.
ALONE = {
    ("extract", "data/images"), ("extract", "models/clip"), ("similarity", "data/concept_distribution.parquet"),
    ("components", "data/features.h5"), ("mine", "models/clip"), ("train", "models/backbone"),
    ("evaluate", "reports/plots/baselines_precision_recall.csv"),
    ("evaluate", "reports/plots/baselines_precision_at_n.csv"),
    *(("report", f"reports/plots/{name}.csv") for name in (
        "baselines_precision_recall", "baselines_precision_at_n", "precision_recall", "precision_at_n")),
    ("report", "reports/train"), ("report", "models/clip"),
}  # fmt: skip
WITHOUT_MODEL = {"data/images", "data/dataset.json"}
#: By stage, what stands beside images alone, which know of no model.
WITH_IMAGES_ALONE = {"index": {"data/codes.h5"}}
COMPARED = [
    (stage, path, what) for stage in STAGES for path in inputs(stage) for what in ("dataset", "model")
    if (stage, path) not in ALONE
    and not (what == "model" and path in WITHOUT_MODEL | WITH_IMAGES_ALONE.get(stage, set()))
]  # fmt: skip


@pytest.mark.parametrize(("stage", "path", "what"), faults("input of another run", COMPARED, ci=20))
def test_artifact_of_another_data_set_or_model(stage, path, what, directory, run_stages, tiny_run, outcome):
    prepare(directory, READ_WITH.get((stage, path), {}))
    link([other for other in inputs(stage) if other != path], tiny_run, directory)
    copy([path], tiny_run, directory)
    claim(directory / path, **{what: "f" * 64})
    message = run_stages(directory, stage).error()
    assert f"made with another {'data set' if what == 'dataset' else 'model'} (" in message
    assert "ffffffffffff" in message and path in message and "rebuild it with `dvc repro " in message
    assert nothing_made(directory, stage)
    outcome("refused")


def test_other_model_under_the_features(directory, run_stages, tiny_run):
    """Weights that were exchanged are noticed by their content, not by what they say."""
    copy(["models/clip"], tiny_run, directory)
    link([path for path in inputs("mine") if path != "models/clip"], tiny_run, directory)
    weights = directory / "models/clip/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    message = run_stages(directory, "mine").error()
    assert message.startswith("models/clip/model.safetensors: SHA-256 is ") and "`dvc repro weights`" in message


def test_components_of_other_training_images(directory, run_stages, tiny_run):
    link([path for path in inputs("train") if path != "data/components.h5"], tiny_run, directory)
    copy(["data/components.h5"], tiny_run, directory)
    with h5py.File(directory / "data/components.h5", "r+") as file:
        file["train/id"][0] += 1
    message = run_stages(directory, "train").error()
    assert message == (
        "data/components.h5: has other training images than data/features.h5; rebuild it with `dvc repro components`"
    )


# ---- damaged artifacts: test_damage.py, and


def test_wrong_parquet_schema_of_images(directory, run_stages, tiny_run):
    copy(["data/images"], tiny_run, directory)
    link(["models/clip"], tiny_run, directory)
    for file in (directory / "data/images").iterdir():
        table = pq.read_table(file)
        pq.write_table(table.set_column(2, "labels", table["id"]), file)
    message = run_stages(directory, "extract").error()
    assert message.startswith("data/images/images-00000.parquet: column 'labels' is int64, the image format has list<")
    assert message.endswith("int16>; rebuild it with `dvc repro download`")


def test_labels_without_a_class(directory, run_stages, tiny_run):
    link([path for path in inputs("evaluate") if path != "data/dataset.json"], tiny_run, directory)
    copy(["data/dataset.json"], tiny_run, directory)
    content = json.loads((directory / "data/dataset.json").read_text())
    (directory / "data/dataset.json").write_text(json.dumps(content | {"class_names": content["class_names"][:3]}))
    message = run_stages(directory, "evaluate").error()
    assert message.startswith("data/images: has labels beyond the 3 classes of data/dataset.json; rebuild it with")


def test_images_of_two_data_sets(directory, run_stages, tiny_run):
    copy(["data/images"], tiny_run, directory)
    link(["models/clip"], tiny_run, directory)
    (first,) = (directory / "data/images").iterdir()
    second = first.with_name("images-00001.parquet")
    shutil.copy(first, second)
    claim(second, dataset="f" * 64)
    message = run_stages(directory, "extract").error()
    assert message.startswith("data/images/images-00001.parquet: made with another data set (ffffffffffff)")


# ---- processes that render and decode


def kill_a_worker(directory, stage):
    """Run a stage whose work is shared among processes and kill one, as the system does when memory runs out."""
    process = subprocess.Popen([sys.executable, "-m", "stages", stage], cwd=directory, stderr=subprocess.PIPE,
                               text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    workers = []
    while len(workers) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
        listed = subprocess.run(["pgrep", "--parent", str(process.pid)], capture_output=True, text=True).stdout
        workers = [int(number) for number in listed.split()]
    time.sleep(0.5)
    os.kill(workers[-1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and nothing_made(directory, stage), stderr
    return process.returncode, stderr.removeprefix("error: ")


@pytest.mark.slow
def test_killed_decoder(directory, tiny_run):
    prepare(directory, {"extract": {"workers": 2, "views": 40, "batch_size": 4}})
    link(inputs("extract"), tiny_run, directory)
    code, message = kill_a_worker(directory, "extract")
    assert code == 2 and message.startswith("extract.workers: a decoding process was killed, most likely for memory")


@pytest.mark.slow
def test_killed_renderer(directory):
    prepare(directory, {"dataset": {"queries": 1000, "database": 8000}})
    code, message = kill_a_worker(directory, "download")
    assert code == 1 and message.startswith("verifying images: a worker process was killed from outside; free")
