"""Concept mining: scores, prompts, denoising, the mined distribution and the two tables, with and without texts."""

import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scene_shards import DIGEST
from scipy.special import softmax

from stages.artifacts import (
    CLIP,
    CONCEPT_DISTRIBUTION,
    CONCEPTS,
    DATASET,
    FEATURES,
    PROVENANCE_KEY,
    Provenance,
    write_json,
)
from stages.clip import load_clip
from stages.errors import InputError
from stages.hdf5 import write_text
from stages.images import Dataset
from stages.mine import concepts
from stages.mine.concepts import (
    choose,
    concept_distribution,
    concept_frequency,
    concept_scores,
    denoise,
    ensemble,
    mine_distribution,
)
from stages.mine.config import Params
from stages.mine.stage import NO_TEXT_SIDE, run
from stages.params import parse
from stages.tables import fixed_size_lists, matrix, read_table
from stages.weights.config import Params as WeightsParams
from stages.weights.stage import run as run_weights


def random_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_scores_are_cosines() -> None:
    images, texts = random_rows(6, 5), 3 * random_rows(4, 5, seed=1)
    scores = concept_scores(images, texts)
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            assert scores[i, j] == pytest.approx(image @ text / np.sqrt(image @ image * (text @ text)))


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_the_distribution_is_a_softmax_at_tau_times_m(tau: float) -> None:
    scores = random_rows(6, 9)
    kept = scores.copy()
    np.testing.assert_allclose(concept_distribution(scores, tau), softmax(tau * 9 * scores, axis=1))
    np.testing.assert_array_equal(scores, kept)  # the argument is left as it was


def test_the_distribution_does_not_overflow() -> None:
    distribution = concept_distribution(np.array([[1.0, -1.0, 0.999]] * 2, np.float32), 1e6)
    np.testing.assert_array_equal(distribution, [[1, 0, 0]] * 2)


def test_frequencies_count_the_top_concept() -> None:
    images, texts = random_rows(200, 6), random_rows(7, 6, seed=1)
    distribution = softmax(3 * 7 * concept_scores(images, texts), axis=1)
    expected = [int((distribution.argmax(axis=1) == j).sum()) for j in range(7)]
    assert concept_frequency(images, texts).tolist() == expected


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = random_rows(200, 6), random_rows(7, 6, seed=1)
    frequency, mined = concept_frequency(images, texts), mine_distribution(images, texts, 3.0)
    for chunk in (1, 7, 199, 200):
        monkeypatch.setattr(concepts, "CHUNK", chunk)
        np.testing.assert_array_equal(concept_frequency(images, texts), frequency)
        np.testing.assert_allclose(mine_distribution(images, texts, 3.0), mined, rtol=1e-6)
    assert mined.dtype == np.float32
    np.testing.assert_allclose(mined.sum(axis=1), 1, rtol=1e-6)


FREQUENCY = np.array([0, 5, 6, 49, 50, 10])  # of 100 images and 10 concepts with 0.5: bounds are 5 and 50


@pytest.mark.parametrize(
    ("low", "high", "kept"),
    [
        (0.5, 0.5, [0, 0, 1, 1, 0, 1]),
        (0.5, None, [0, 0, 1, 1, 1, 1]),
        (None, 0.5, [1, 1, 1, 1, 0, 1]),
        (None, None, [1, 1, 1, 1, 1, 1]),
        (0.0, 0.5, [0, 1, 1, 1, 0, 1]),
    ],
)
def test_denoising_keeps_what_lies_strictly_between_the_bounds(
    low: float | None, high: float | None, kept: list[int]
) -> None:
    frequency = np.concatenate([FREQUENCY, [0, 0, 0, 0]])
    found, reasons = denoise(frequency, 100, low, high)
    assert found[:6].astype(int).tolist() == kept
    for keep, count, reason in zip(found, frequency, reasons, strict=True):
        assert reason == ("" if keep else "too frequent" if count >= 50 else "too rare")


@pytest.mark.parametrize(
    ("frequency", "low", "high", "named", "not_named"),
    [
        ([100, 0, 0], 0.5, 0.5, ["concepts.min_frequency", "concepts.max_frequency", "2 are", "1 on top"], []),
        ([50, 50], None, 0.5, ["concepts.max_frequency", "2 on top"], ["min_frequency", "None"]),
        ([34, 33, 33], 1.5, None, ["concepts.min_frequency", "3 are"], ["max_frequency", "None"]),
    ],
)
def test_no_concept_kept_names_the_bound(
    frequency: list[int], low: float | None, high: float | None, named: list[str], not_named: list[str]
) -> None:
    with pytest.raises(InputError, match="no concept kept") as error:
        denoise(np.array(frequency), 100, low, high)
    message = str(error.value)
    assert all(text in message for text in named)
    assert not any(text in message for text in not_named)
    assert "\n" not in message


def test_what_is_left_out_takes_no_part() -> None:
    images, texts = random_rows(200, 6), random_rows(7, 6, seed=1)
    left_out = np.array([0, 0, 1, 0, 1, 0, 0], bool)
    frequency, kept, reasons = choose(images, texts, left_out, 0.5, 0.9)
    np.testing.assert_array_equal(frequency[~left_out], concept_frequency(images, texts[~left_out]))
    assert frequency.sum() == 200
    assert not kept[left_out].any()
    assert [reasons[2], reasons[4]] == ["label name"] * 2
    np.testing.assert_array_equal(kept[~left_out], denoise(frequency[~left_out], 200, 0.5, 0.9)[0])  # m is 5


def test_an_ensemble_is_the_unit_mean_of_unit_rows() -> None:
    parts = [random_rows(4, 5, seed) for seed in range(3)]
    parts = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
    mixed = ensemble(parts)
    for row, *rows in zip(mixed, *parts, strict=True):
        total = rows[0] + rows[1] + rows[2]
        np.testing.assert_allclose(row, total / np.sqrt(total @ total))
    np.testing.assert_array_equal(ensemble(parts[:1]), parts[0])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("prompt", "a photo of the concept", "must contain {concept} once"),
        ("prompt", "{concept} and {concept}", "must contain {concept} once"),
        ("prompt", ["a {concept}", "a photo"], "must contain {concept} once, 'a photo' does not"),
        ("prompt", ["a {concept}", "the {concept}", "a {concept}"], "has a template twice"),
        ("prompt", [], "concepts.prompt: [] is not allowed: must have at least one template"),
        ("prompt", None, "concepts.prompt: None is not allowed: must be a template, or a list of templates"),
        ("prompt", ["a {concept}", 3], "must be a template, or a list of templates"),
        ("tau", 0.0, "concepts.tau"),
        ("tau", float("inf"), "concepts.tau"),
        ("min_frequency", -0.1, "concepts.min_frequency"),
        ("max_frequency", 0.0, "concepts.max_frequency"),
    ],
)
def test_bad_parameters_are_named(key: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        params(**{key: value})


def params(**changes: object) -> Params:
    section = {
        "vocabulary": "words.txt", "prompt": "a photo of the {concept}", "exclude_label_names": False, "tau": 3.0,
        "min_frequency": 0.2, "max_frequency": 0.9, **changes,
    }  # fmt: skip
    return parse(Params, {"device": "cpu", "concepts": section})


WORDS = ["dog", "car", "tree", "airplane", "fish"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: Path) -> Path:
    """Features of 60 images, of which 40 are for training: each near the text of one of the first three words."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / CLIP).parent.mkdir()
    (tmp_path / CLIP).symlink_to(pinned)
    write(tmp_path / "words.txt", "\n".join(WORDS))
    clip = load_clip()
    write_dataset(["Dog", "tree", "boat"])
    texts = clip.encode_texts([f"a photo of the {word}" for word in WORDS]).numpy()
    noise = np.random.default_rng(0).standard_normal((60, clip.dim)) * 0.02
    images = texts[np.arange(60) % 3] + noise
    write_features(images, np.arange(60)[np.arange(60) % 6 < 4], clip.sha256)
    return tmp_path


def write_dataset(class_names: list[str]) -> None:
    DATASET.parent.mkdir(exist_ok=True)
    dataset = Dataset("tiny", "protocol", class_names, {}, [10], "CC0", "tests", {}, 0, DIGEST, "5" * 64, 0, [])
    write_json(DATASET, asdict(dataset))


def write_features(images: np.ndarray, train_id: np.ndarray, model: str) -> None:
    FEATURES.parent.mkdir(exist_ok=True)
    rows = images / np.linalg.norm(images, axis=1, keepdims=True)
    with h5py.File(FEATURES, "w") as file:
        write_text(file, PROVENANCE_KEY, Provenance("extract", DIGEST, model).to_json())
        file["image/features"], file["image/id"] = rows.astype(np.float16), np.arange(len(rows))
        file["train/views"], file["train/id"] = rows[train_id][None].astype(np.float16), train_id


def test_the_stage_writes_both_tables(here: Path) -> None:
    run(params())
    kinds = {
        "concept": pa.string(), "prompt": pa.string(), "frequency": pa.int64(), "kept": pa.bool_(),
        "reason": pa.string(), "text_feature": None,
    }  # fmt: skip
    table, provenance, _ = read_table(CONCEPTS, kinds)
    assert pq.read_schema(CONCEPTS).names == list(kinds)
    assert table["concept"].to_pylist() == WORDS
    assert table["prompt"].to_pylist() == [f"a photo of the {word}" for word in WORDS]
    # Rows 0, 1, 2, 3 of every six are for training: the first word is the top one of two in four.
    assert table["frequency"].to_pylist() == [20, 10, 10, 0, 0]
    assert table["kept"].to_pylist() == [True, True, True, False, False]
    assert table["reason"].to_pylist() == ["", "", "", "too rare", "too rare"]
    texts = matrix(table, "text_feature")
    np.testing.assert_allclose(texts, load_clip().encode_texts(table["prompt"].to_pylist()).numpy(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-5)
    assert (provenance.stage, provenance.dataset, provenance.model) == ("mine", DIGEST, load_clip().sha256)
    assert provenance.params["tau"] == 3.0

    rows, mined_from, extra = read_table(CONCEPT_DISTRIBUTION, {"id": pa.int64(), "distribution": None})
    train_id = np.arange(60)[np.arange(60) % 6 < 4]
    np.testing.assert_array_equal(rows["id"].to_numpy(), train_id)
    assert mined_from == provenance
    assert extra["concepts"] == WORDS[:3]
    mined = matrix(rows, "distribution")
    assert mined.shape == (40, 3)
    np.testing.assert_array_equal(mined.argmax(axis=1), train_id % 3)
    with h5py.File(FEATURES) as file:
        images = file["image/features"][:][train_id].astype(np.float64)
    expected = softmax(3.0 * 3 * concept_scores(images, texts[:3]), axis=1)
    np.testing.assert_allclose(mined, expected, rtol=1e-3)


def test_another_prompt_is_used(here: Path) -> None:
    run(params(prompt="{concept}!", min_frequency=None, max_frequency=None))
    table, _, _ = read_table(CONCEPTS, {"prompt": pa.string(), "kept": pa.bool_()})
    assert table["prompt"].to_pylist() == [f"{word}!" for word in WORDS]
    assert all(table["kept"].to_pylist())


def test_several_templates_are_averaged(here: Path) -> None:
    templates = ["a photo of the {concept}", "a drawing of many {concept}s"]
    run(params(prompt=templates))
    table, provenance, _ = read_table(CONCEPTS, {"prompt": pa.string(), "text_feature": None})
    assert table["prompt"].to_pylist()[1] == "a photo of the car | a drawing of many cars"
    clip = load_clip()
    parts = [clip.encode_texts([template.format(concept=word) for word in WORDS]).numpy() for template in templates]
    expected = parts[0] + parts[1]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(matrix(table, "text_feature"), expected, atol=1e-6)
    assert np.abs(matrix(table, "text_feature") - parts[0]).max() > 0.01
    assert provenance.params["prompt"] == templates


def test_names_of_classes_can_be_left_out(here: Path) -> None:
    run(params(exclude_label_names=True, min_frequency=0.2, max_frequency=None))
    table, _, _ = read_table(CONCEPTS, {"frequency": pa.int64(), "kept": pa.bool_(), "reason": pa.string()})
    assert [reason == "label name" for reason in table["reason"].to_pylist()] == [True, False, True, False, False]
    frequency = np.array(table["frequency"].to_pylist())
    assert frequency[[0, 2]].tolist() == [0, 0]
    assert frequency.sum() == 40  # each image has the best of the others on top
    assert table["kept"].to_pylist() == [r == "" for r in table["reason"].to_pylist()]
    kept = frequency > 0.2 * 40 / 3  # m is 3 without them
    assert table["kept"].to_pylist() == kept.tolist()
    _, _, extra = read_table(CONCEPT_DISTRIBUTION, {"distribution": None})
    assert extra["concepts"] == [word for word, keep in zip(WORDS, kept, strict=True) if keep]


def test_a_vocabulary_of_class_names_alone_cannot_leave_them_out(here: Path) -> None:
    write_dataset(WORDS[:4])
    with pytest.raises(InputError, match=r"concepts\.exclude_label_names: without the 4 names of classes"):
        run(params(exclude_label_names=True))


def test_names_are_compared_as_the_audit_does(here: Path) -> None:
    write_dataset(["Dogs", "the_trees", "air-plane"])
    run(params(exclude_label_names=True, max_frequency=None, min_frequency=None))
    table, _, _ = read_table(CONCEPTS, {"reason": pa.string()})
    assert table["reason"].to_pylist() == ["label name", "", "", "label name", ""]


def test_no_concept_kept_leaves_no_table(here: Path) -> None:
    with pytest.raises(InputError, match=r"concepts\.min_frequency"):
        run(params(min_frequency=4.9))
    assert not CONCEPTS.exists()
    assert not CONCEPT_DISTRIBUTION.exists()


def test_features_of_another_model_are_refused(here: Path) -> None:
    write_features(random_rows(10, 64), np.arange(5), "e" * 64)
    with pytest.raises(InputError, match="another model") as error:
        run(params())
    assert str(FEATURES) in str(error.value)
    assert "dvc repro extract" in str(error.value)
    assert not CONCEPTS.exists()


# ---- text features that somebody else computed, and no text side at all


def without_model() -> None:
    """``models/clip`` as it is for ``clip.model: null``."""
    CLIP.unlink()
    nothing = {"clip": {"model": None, "pretrained": None}, "backbone": {"model": None, "weights": None}}
    run_weights(WeightsParams.model_validate(nothing))


def write_parquet(words: list[str], texts: np.ndarray, provenance: Provenance | None = None) -> str:
    table = pa.table({"concept": words, "text_feature": fixed_size_lists(texts.astype(np.float32))})
    if provenance:
        table = table.replace_schema_metadata({PROVENANCE_KEY: provenance.to_json()})
    pq.write_table(table, "words.parquet")
    return "words.parquet"


@pytest.fixture
def no_model(here: Path) -> np.ndarray:
    """Features of no known model, and no model: the text features that they were made from."""
    texts = random_rows(4, 8)
    write_features(texts[np.arange(60) % 3] + 0.1 * random_rows(60, 8, seed=1), np.arange(40), "")
    without_model()
    return texts


def test_text_features_at_hand_need_no_model(no_model: np.ndarray) -> None:
    vocabulary = write_parquet(WORDS[:4], 5 * no_model)
    run(params(vocabulary=vocabulary))
    kinds = {"concept": pa.string(), "prompt": pa.string(), "frequency": pa.int64(), "text_feature": None}
    table, _, _ = read_table(CONCEPTS, kinds)
    assert table["frequency"].to_pylist() == [14, 13, 13, 0]
    assert table["prompt"].to_pylist() == [""] * 4
    unit = no_model / np.linalg.norm(no_model, axis=1, keepdims=True)
    np.testing.assert_allclose(matrix(table, "text_feature"), unit, atol=1e-6)
    rows, _, extra = read_table(CONCEPT_DISTRIBUTION, {"distribution": None})
    assert extra["concepts"] == WORDS[:3]
    np.testing.assert_array_equal(matrix(rows, "distribution").argmax(axis=1), np.arange(40) % 3)


def test_the_concepts_of_a_run_are_a_vocabulary(here: Path) -> None:
    """With the model's name in them, and the same result as from the words."""
    run(params(min_frequency=None, max_frequency=None))
    first = pq.read_table(CONCEPT_DISTRIBUTION)
    CONCEPTS.rename("words.parquet")
    run(params(vocabulary="words.parquet", min_frequency=None, max_frequency=None))
    np.testing.assert_allclose(
        matrix(pq.read_table(CONCEPT_DISTRIBUTION), "distribution"), matrix(first, "distribution"), rtol=1e-4
    )


def test_text_features_of_another_model_are_refused(here: Path) -> None:
    dim = load_clip().dim
    write_parquet(WORDS, random_rows(5, dim), Provenance("mine", "f" * 64, "e" * 64))
    with pytest.raises(InputError, match=r"words\.parquet: made with another model \(eeeeeeeeeeee\) than data/feat"):
        run(params(vocabulary="words.parquet"))
    write_parquet(WORDS, random_rows(5, dim), Provenance("mine", "f" * 64, load_clip().sha256))
    run(params(vocabulary="words.parquet", min_frequency=None))  # another data set is no matter


def test_text_features_of_other_dimensions_are_refused(no_model: np.ndarray) -> None:
    with pytest.raises(InputError) as error:
        run(params(vocabulary=write_parquet(WORDS, random_rows(5, 9))))
    assert str(error.value) == (
        "concepts.vocabulary: words.parquet has text features of 9 dimensions, data/features.h5 image features of 8; "
        "both must come from one model"
    )
    assert not CONCEPTS.exists()


@pytest.mark.parametrize("exclude", [False, True])
def test_without_a_text_side_there_are_no_concepts(
    no_model: np.ndarray, capsys: pytest.CaptureFixture[str], exclude: bool
) -> None:
    run(params(exclude_label_names=exclude))
    assert capsys.readouterr().out == f"mine: {NO_TEXT_SIDE}\n"
    kinds = {"concept": pa.string(), "prompt": pa.string(), "frequency": pa.int64(), "kept": pa.bool_(),
             "reason": pa.string(), "text_feature": None}  # fmt: skip
    table, provenance, _ = read_table(CONCEPTS, kinds)
    assert matrix(table, "text_feature").shape == (0, 8)
    rows, _, extra = read_table(CONCEPT_DISTRIBUTION, {"id": pa.int64(), "distribution": None})
    assert matrix(rows, "distribution").shape == (40, 0)
    assert rows["id"].to_pylist() == list(range(40))
    assert extra["concepts"] == []
    assert provenance.dataset == DIGEST


def test_torch_is_imported_for_prompts_alone(no_model: np.ndarray) -> None:
    write_parquet(WORDS[:4], no_model)
    code = (
        "import sys; from stages.mine.config import Params; from stages.mine.stage import run\n"
        "for vocabulary in ('words.txt', 'words.parquet'):\n"
        "    run(Params(device='cpu', concepts=dict(vocabulary=vocabulary, prompt='{concept}', tau=3.0,\n"
        "        exclude_label_names=True, min_frequency=None, max_frequency=None)))\n"
        "    print(sorted({'torch', 'open_clip'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={
        **os.environ, "PYTHONPATH": str(Path(__file__).parents[1]),
    })  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1:] == ["[]", "[]"]
