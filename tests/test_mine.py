"""Concept mining: vocabulary, scores, denoising, the mined distribution and the two tables."""

import re
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scene_shards import DIGEST, pin_scenes_clip
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
from stages.images import Dataset
from stages.mine import concepts
from stages.mine.concepts import (
    concept_distribution,
    concept_frequency,
    concept_scores,
    denoise,
    mine_distribution,
    read_vocabulary,
)
from stages.mine.config import Params
from stages.mine.stage import run
from stages.params import parse
from stages.tables import matrix, read_table

ROOT = Path(__file__).parents[1]


def random_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_vocabulary_has_comments_blank_lines_and_repetitions(tmp_path: Path) -> None:
    text = "# animals\ncat\n\n  dog \nfire engine  # red\r\ncat\n#dog\nétoile"
    assert read_vocabulary(write(tmp_path / "words.txt", text)) == ["cat", "dog", "fire engine", "étoile"]


def test_a_vocabulary_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert read_vocabulary(write(tmp_path / "words.txt", b"\xef\xbb\xbfcat\r\ndog\r\n")) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has 0 concepts"),
        ("cat\n#dog\ncat", "has 1 concepts"),
        (b"cat\n\xff\xfe", "not UTF-8"),
        (None, "not found"),
    ],
)
def test_a_bad_vocabulary_is_named(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        write(path, content)
    with pytest.raises(InputError, match=message) as error:
        read_vocabulary(path)
    assert "concepts.vocabulary" in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("name", "at_least"), [("everyday", 25), ("nuswide81", 81)])
def test_the_vocabularies_that_ship_are_distinct_words(name: str, at_least: int) -> None:
    path = ROOT / "stages" / "mine" / "vocabularies" / f"{name}.txt"
    words = read_vocabulary(path)
    assert len(words) >= at_least
    assert len({word.lower() for word in words}) == len(words)
    assert all(re.fullmatch(r"[a-z][a-z' -]*[a-z]", word) for word in words)


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


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("prompt", "a photo of the concept", "must contain {concept} once"),
        ("prompt", "{concept} and {concept}", "must contain {concept} once"),
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


@pytest.fixture(scope="module")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pin_scenes_clip(tmp_path_factory.mktemp("model") / "clip")


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
    write_json(DATASET, asdict(Dataset("tiny", "protocol", class_names, {}, [10], "CC0", "tests", {}, 0, DIGEST)))


def write_features(images: np.ndarray, train_id: np.ndarray, model: str) -> None:
    FEATURES.parent.mkdir(exist_ok=True)
    rows = images / np.linalg.norm(images, axis=1, keepdims=True)
    with h5py.File(FEATURES, "w") as file:
        file.attrs[PROVENANCE_KEY] = Provenance("extract", DIGEST, model).to_json()
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
