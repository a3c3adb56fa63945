"""The pipeline from features that somebody else computed, without any pixels, and with or without a text side."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from download_run import environment, nothing_left_over, skipped
from scene_shards import encoded, picture, pin_scenes_clip, write_shards
from stage_runner import ROOT, write_params

from stages.artifacts import CLIP, CONCEPT_DISTRIBUTION, FEATURES, HASHNET, IMAGES
from stages.clip import read_clip_config
from stages.codes import read_codes
from stages.errors import InputError
from stages.extract import embeddings as conversion
from stages.features import Features
from stages.hdf5 import read_text
from stages.images import ImageShards, read_dataset
from stages.params import parse
from stages.weights.config import Backbone
from stages.weights.stage import pin_backbone

DIM, COUNT = 16, 600
#: The directions that the embeddings lie around.
CLUSTERS = np.random.default_rng(1).standard_normal((6, DIM))
TINY: dict[str, Any] = {
    "extract": {"views": 3}, "components": {"fine": 20, "coarse": 4, "pca": 8}, "method": "dsch",
    "concepts": {"min_frequency": None, "max_frequency": None},
    "train": {"epochs": 4, "batch_size": 64, "hidden": 32}, "evaluate": {"precision_at": [1, 10]},
    "clip": {"model": None, "pretrained": None},
}  # fmt: skip


def normal(n: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim), np.float32)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with embeddings around six directions, some of which are of no use."""
    monkeypatch.chdir(tmp_path)
    Path("stages").symlink_to(ROOT / "stages")  # params.yaml names the vocabulary there
    labels = np.random.default_rng(2).integers(0, 6, COUNT)
    values = 7 * (CLUSTERS[labels] + 0.4 * normal(COUNT, DIM))
    values[3], values[400] = 0, np.nan
    np.save("things.npy", values)
    np.save("things.labels.npy", labels)
    return tmp_path


def run(stage: str, **changes: Any) -> None:
    """Run a stage with the tiny parameters and `changes`."""
    write_params(Path(), TINY, {"dataset": {"name": "embeddings", "path": "things.npy"}}, changes)
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    config = importlib.import_module(f"stages.{stage}.config").Params
    importlib.import_module(f"stages.{stage}.stage").run(parse(config, values))


def run_all(stages: str, **changes: Any) -> None:
    for stage in stages.split():
        run(stage, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dsch", "fused"])
def test_images_alone_are_enough(here: Path, capsys: pytest.CaptureFixture, method: str) -> None:
    run_all("download weights extract mine similarity components train encode map baselines evaluate "
            "explain report", method=method)  # fmt: skip
    dataset = read_dataset()
    assert (dataset.name, dataset.protocol, dataset.class_names) == ("things", "holdout", list("012345"))
    assert dataset.counts == {"images": 598, "query": 59, "database": 539, "train": 539}
    assert skipped()[1:] == [["things.npy#3", "is zero, which has no direction"],
                             ["things.npy#400", "has features that are not finite numbers"]]  # fmt: skip
    assert nothing_left_over()
    codes = read_codes()
    assert (codes.method, codes.bits, len(codes.query), len(codes.database)) == (method, 32, 59, 539)
    metrics, others = (json.loads(Path(f"reports/{name}.json").read_text()) for name in ("metrics", "baselines"))
    assert metrics["map_all_tie_aware"] > 0.9 and metrics["guidance"] == "images alone"
    assert {"lsh", "itq", "feature_cosine"} <= others.keys() and "concept_cosine" not in others
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said if line] == ["mine", "similarity"]
    assert "no concepts. method: fused and dsch need none; uhscm needs clip.model, or a Parquet" in said[0]
    assert said[1].endswith("method: fused and dsch need none")
    page = Path("reports/index.html").read_text(encoding="utf-8")
    assert "so there are no concepts" in page and "the features were computed elsewhere" in page
    assert "Not looked for: there are no pixels" in page


def test_without_a_text_side_uhscm_says_what_is_missing(here: Path) -> None:
    run_all("download weights extract mine similarity components")
    with pytest.raises(InputError, match="method: 'uhscm' needs a text side, and there is none") as error:
        run("train", method="uhscm")
    for part in ("clip.model is null", "set clip.model to", "concepts.vocabulary to a Parquet file",
                 "or method: fused or dsch"):  # fmt: skip
        assert part in str(error.value)
    assert not HASHNET.exists()


def test_fused_learns_from_concepts_where_there_are_some(here: Path) -> None:
    """So it has to know that there are none; the similarity it does not read."""
    run_all("download weights extract components")
    with pytest.raises(InputError, match=f"{CONCEPT_DISTRIBUTION}: not found; .*`dvc repro mine`"):
        run("train", method="fused")
    networks = []
    for vocabulary in ({}, {"concepts": {"vocabulary": "words.parquet"}}):
        write_words()
        run_all("mine train", method="fused", **vocabulary)
        networks.append((HASHNET / "model.safetensors").read_bytes())
    assert networks[0] != networks[1]


def write_words() -> None:
    """A vocabulary of the directions that the embeddings lie around."""
    words = [f"thing {number}" for number in range(6)]
    pq.write_table(pa.table({"concept": words, "text_feature": CLUSTERS.tolist()}), "words.parquet")


def test_dsch_does_not_look_at_the_similarity(here: Path) -> None:
    run_all("download weights extract components")
    run("train")
    assert HASHNET.exists()


@pytest.mark.parametrize("method", ["uhscm", "fused"])
def test_text_features_of_a_vocabulary_are_a_text_side(here: Path, method: str) -> None:
    write_words()
    changes = {"method": method, "concepts": {"vocabulary": "words.parquet"}}
    run_all("download weights extract mine similarity components train encode baselines evaluate", **changes)
    assert json.loads(Path("reports/metrics.json").read_text())["map_all_tie_aware"] > 0.9


def test_the_model_that_made_them_is_a_text_side(here: Path) -> None:
    """Those of the model of this package have 64 dimensions."""
    pin_scenes_clip(Path(CLIP))
    pin_backbone(Backbone(model=None, weights=None))
    run("download")
    with pytest.raises(InputError, match=r"the embeddings have 16 dimensions, clip\.model scenes-clip gives 64; name"):
        run("extract")
    np.save("things.npy", normal(COUNT, 64))
    run_all("download extract mine similarity components")
    run("train", method="fused")
    with Features() as features:
        assert features.provenance.model == read_clip_config().sha256 != ""
    with h5py.File(FEATURES) as file:
        assert (read_text(file, "model"), read_text(file, "pretrained")) == ("scenes-clip", "embedded")


def test_the_features_are_those_given_at_unit_length(here: Path) -> None:
    run_all("download weights extract")
    given = np.delete(np.load("things.npy"), [3, 400], axis=0)
    with h5py.File(FEATURES) as file:
        assert file["image/features"].dtype == file["train/views"].dtype == np.float16
        assert file["image/features"].chunks == (598, DIM) and file["train/views"].chunks == (1, 539, DIM)
        np.testing.assert_array_equal(file["image/id"][:], np.arange(598))
        assert (read_text(file, "model"), read_text(file, "precision")) == ("", "float32, stored as float16")
        expected = given / np.linalg.norm(given, axis=1, keepdims=True)
        np.testing.assert_allclose(file["image/features"][:], expected, atol=1e-3)
    shards = ImageShards()
    with Features() as features:
        np.testing.assert_array_equal(features.train_id, shards.ids("train"))
        assert features.views().shape == (3, 539, DIM)
        made = features.provenance
    assert (made.stage, made.dataset, made.model) == ("extract", shards.provenance.dataset, "")
    assert made.params == {"views": 3, "seed": 0}


@pytest.mark.parametrize("dim", [16, 512])
def test_views_are_as_near_as_promised_in_any_dimension(dim: int) -> None:
    features = conversion.unit_rows(normal(2000, dim))
    views = conversion.noisy_views(features, np.arange(2000), 2, seed=0)
    assert views.shape == (2, 2000, dim) and views.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(views, axis=2), 1, rtol=1e-6)
    cosines = np.einsum("vnd,nd->vn", views, features)
    assert abs(np.median(cosines) - 0.8) < 0.02
    between = np.einsum("nd,nd->n", *views)
    assert abs(np.median(between) - 0.64) < 0.02  # noise of its own in each


def test_a_view_depends_on_seed_and_image_alone() -> None:
    features, ids = conversion.unit_rows(normal(6, 8)), np.array([2, 5, 9, 70, 71, 10**9])
    views = conversion.noisy_views(features, ids, 3, seed=4)
    some = np.array([5, 0, 3])
    np.testing.assert_array_equal(conversion.noisy_views(features[some], ids[some], 3, seed=4), views[:, some])
    np.testing.assert_array_equal(conversion.noisy_views(features, ids, 2, seed=4), views[:2])
    for other_ids, seed in ((ids, 5), (ids + 1, 4)):
        assert np.abs(conversion.noisy_views(features, other_ids, 3, seed) - views).max(axis=2).min() > 1e-3
    assert conversion.noisy_views(features[:0], ids[:0], 3, seed=4).shape == (3, 0, 8)


def test_unit_rows_of_the_largest_and_the_smallest_numbers() -> None:
    values = np.array([[3e38, 3e38], [1e-40, 0], [0, 0]], np.float32)
    np.testing.assert_allclose(conversion.unit_rows(values), [[0.5**0.5] * 2, [1, 0], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("group", [1, 7, 5000])
def test_row_groups_and_shards_change_nothing(here: Path, group: int) -> None:
    run_all("download weights extract")
    before = FEATURES.read_bytes()
    table = ImageShards().columns(pq.read_schema(next(IMAGES.glob("*"))).names)
    half = len(table) // 2
    for number, part in enumerate((table[:half], table[half:])):
        pq.write_table(part.replace_schema_metadata(table.schema.metadata), IMAGES / f"images-{number:05d}.parquet",
                       row_group_size=group)  # fmt: skip
    run("extract")
    assert FEATURES.read_bytes() == before


def _with_features(table: pa.Table, features: pa.Array) -> pa.Table:
    return table.set_column(6, "features", features)


def _edit_shard(change: Callable[[pa.Table], pa.Table]) -> None:
    file = next(IMAGES.glob("*"))
    pq.write_table(change(pq.read_table(file)), file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: _with_features(table, pa.array([[1.0]] * len(table))), "column 'features' is list"),
        (lambda table: table.rename_columns([*table.column_names[:6], "vectors"]), "columns are"),
        (lambda table: _with_features(table, pa.nulls(len(table), pa.list_(pa.float32(), DIM))), "without features"),
    ],
)
def test_shards_of_another_schema_are_refused(here: Path, change: Callable[[pa.Table], pa.Table], message: str) -> None:
    run_all("download weights")
    _edit_shard(change)
    with pytest.raises(InputError, match=message) as error:
        run("extract")
    assert str(error.value).startswith(str(IMAGES)) and str(error.value).endswith("`dvc repro download`")


def test_shards_with_and_without_pixels_do_not_mix(here: Path) -> None:
    run_all("download weights")
    table = pq.read_table(next(IMAGES.glob("*"))).drop_columns("features")
    pq.write_table(table, IMAGES / "images-00001.parquet")
    with pytest.raises(InputError, match=r"images-00001\.parquet: has other columns than .*images-00000"):
        run("extract")


def test_images_need_a_model(here: Path) -> None:
    write_shards(Path(), [encoded(picture())] * 4, np.ones(4, bool))
    run("weights")
    with pytest.raises(InputError, match=r"clip\.model: null leaves the images of data/images without"):
        run("extract")


CONVERSION = """
import sys, yaml
import resource
from stages.params import parse
from stages.download import config as download_config, stage as download
from stages.extract import config as extract_config, stage as extract
from stages.weights import config as weights_config, stage as weights
values = yaml.safe_load(open("params.yaml"))
download.run(parse(download_config.Params, values))
weights.run(parse(weights_config.Params, values))
extract.run(parse(extract_config.Params, values))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, *{"torch", "open_clip"} & sys.modules.keys())
"""


def convert_apart(count: int) -> list[str]:
    """Make `count` embeddings into ``features.h5`` in a process: its peak of memory in MiB, and heavy imports."""
    array = np.lib.format.open_memmap("things.npy", "w+", np.float16, (count, 512))
    for first in range(0, count, 1000):
        array[first : first + 1000] = normal(1000, 512, seed=first)
    np.save("things.labels.npy", np.arange(count) % 7)
    write_params(Path(), TINY, {"dataset": {"name": "embeddings", "path": "things.npy", "workers": 1}})
    command = [sys.executable, "-c", CONVERSION]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    with Features() as features:
        assert features.n_images == count
    return done.stdout.split()


@pytest.mark.slow
def test_a_conversion_needs_no_torch_and_memory_does_not_grow(here: Path) -> None:
    (few, *heavy), (many, *_) = convert_apart(2_000), convert_apart(64_000)
    assert heavy == []
    assert int(many) < int(few) + 60  # MiB; as float32 all of them have 125
