"""Vocabularies: those that ship, text files and Parquet files with text features."""

import re
import runpy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.artifacts import PROVENANCE_KEY, Provenance
from stages.errors import InputError
from stages.mine.leakage import label_matches, name_key
from stages.mine.vocabulary import read_vocabulary

SHIPPED = Path(__file__).parents[1] / "stages" / "mine" / "vocabularies"
COUNTS = {"everyday": 28, "nuswide81": 81, "coco80": 80, "nuswide81_coco80": 153, "imagenet1000": 1000, "nouns": 3203}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def shipped(name: str) -> list[str]:
    return read_vocabulary(SHIPPED / f"{name}.txt").words


# ---- those that ship


def test_every_vocabulary_is_known_here() -> None:
    assert {path.stem for path in SHIPPED.iterdir()} == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_a_vocabulary_that_ships(name: str) -> None:
    """So many distinct words, nothing else on a line, and above them where they are from."""
    lines = (SHIPPED / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    words = [line for line in lines if not line.startswith("#")]
    assert shipped(name) == words
    assert len(words) == COUNTS[name]
    assert len({word.lower() for word in words}) == len(words)
    header = " ".join(line for line in lines if line.startswith("#"))
    assert lines[0].startswith("#")
    assert any(text in header for text in ("licence", "CC BY", "Names alone"))
    assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize("name", sorted(set(COUNTS) - {"imagenet1000"}))
def test_words_are_lower_case(name: str) -> None:
    assert [word for word in shipped(name) if not re.fullmatch(r"[a-z]+( [a-z]+)*", word)] == []


def test_the_union_is_one() -> None:
    union = set(shipped("nuswide81")) | set(shipped("coco80"))
    assert shipped("nuswide81_coco80") == sorted(union)


def constant(package: str, module: str, name: str) -> list[str]:
    """A constant of an installed package, without importing all of it."""
    (directory,) = find_spec(package).submodule_search_locations
    return runpy.run_path(str(Path(directory) / module))[name]


def test_coco_has_the_names_of_its_annotations_by_id() -> None:
    names = constant("torchvision", "models/_meta.py", "_COCO_CATEGORIES")
    assert shipped("coco80") == [name for name in names if name not in ("__background__", "N/A")]


def test_imagenet_has_the_names_of_open_clip_by_index() -> None:
    names = constant("open_clip", "zero_shot_metadata.py", "IMAGENET_CLASSNAMES")
    pairs = enumerate(zip(shipped("imagenet1000"), names, strict=True))
    different = {index: words for index, words in pairs if words[0] != words[1]}
    assert different == {744: ("projectile", "missile"), 836: ("sunglass", "sunglasses")}


def test_nouns_are_base_forms() -> None:
    """No word twice, as singular and plural."""
    words = shipped("nouns")
    keys: dict[str, list[str]] = {}
    for word in words:
        keys.setdefault(name_key(word), []).append(word)
    assert [same for same in keys.values() if len(same) > 1] == [["glass", "glasses"]]


def test_nouns_know_most_of_what_the_benchmarks_show() -> None:
    covered = [bool(labels) for labels in label_matches(shipped("coco80"), shipped("nouns"))]
    assert sum(covered) == 65  # all but those of two words
    missing = [name for name, known in zip(shipped("coco80"), covered, strict=True) if not known and " " not in name]
    assert missing == ["tv"]


# ---- text files


def test_a_text_file_has_comments_blank_lines_and_repetitions(tmp_path: Path) -> None:
    text = "# animals\ncat\n\n  dog \nfire engine  # red\r\ncat\n#dog\nétoile"
    vocabulary = read_vocabulary(write(tmp_path / "words.txt", text))
    assert vocabulary.words == ["cat", "dog", "fire engine", "étoile"]
    assert vocabulary.text_features is None


def test_a_text_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert read_vocabulary(write(tmp_path / "words.txt", b"\xef\xbb\xbfcat\r\ndog\r\n")).words == ["cat", "dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has 0 concepts"),
        ("cat\n#dog\ncat", "has 1 concepts"),
        (b"cat\n\xff\xfe", "not UTF-8"),
        (None, "not found"),
        (b"PAR1 and no more", "a Parquet vocabulary has the columns"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        write(path, content)
    assert message in problem(path)


def problem(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_vocabulary(path)
    message = str(error.value)
    assert message.startswith(f"concepts.vocabulary: {path}") and "\n" not in message
    return message


# ---- Parquet files


def write_parquet(path: Path, words: list[str | None], features: pa.Array, **metadata: str) -> Path:
    table = pa.table({"concept": words, "text_feature": features, "more": range(len(words))})
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


ROWS = np.array([[3.0, 4, 0], [0, 0, 2], [1, 1, 1]])


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32(), 3), pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float16())]
)
def test_text_features_come_with_unit_length(tmp_path: Path, kind: pa.DataType) -> None:
    rows = [row.astype(np.float16) for row in ROWS] if kind.value_type == pa.float16() else ROWS.tolist()
    path = write_parquet(tmp_path / "words", [" cat", "dog", "fire engine"], pa.array(rows, kind))
    vocabulary = read_vocabulary(path)
    assert vocabulary.words == ["cat", "dog", "fire engine"]
    assert vocabulary.text_features.dtype == np.float32
    np.testing.assert_allclose(vocabulary.text_features[:2], [[0.6, 0.8, 0], [0, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vocabulary.text_features, axis=1), 1, rtol=1e-6)
    assert vocabulary.model == ""


def test_of_repeated_concepts_the_first_counts(tmp_path: Path) -> None:
    features = pa.array(ROWS.tolist())
    vocabulary = read_vocabulary(write_parquet(tmp_path / "words.parquet", ["cat", "dog", "cat"], features))
    assert vocabulary.words == ["cat", "dog"]
    np.testing.assert_allclose(vocabulary.text_features, [[0.6, 0.8, 0], [0, 0, 1]], atol=1e-6)


def test_a_file_of_this_pipeline_tells_its_model(tmp_path: Path) -> None:
    made = {PROVENANCE_KEY: Provenance("mine", "d" * 64, "e" * 64).to_json()}
    path = write_parquet(tmp_path / "concepts.parquet", ["a", "b", "c"], pa.array(ROWS.tolist()), **made)
    assert read_vocabulary(path).model == "e" * 64


@pytest.mark.parametrize(
    ("words", "features", "message"),
    [
        (["a", "b"], [[1.0, 2.0], [1.0]], "lists of different lengths"),
        (["a", "b"], [[1.0, 2.0], None], "lists of different lengths, or nulls"),
        (["a", "b"], [[1.0, 2.0], [0.0, 0.0]], "the text feature of 'b' is zero"),
        (["a", "b"], [[1.0, float("nan")], [0.0, 1.0]], "the text feature of 'a' is zero, or has numbers that are not"),
        (["a", "b"], [[1.0, 1.0], [None, 1.0]], "the text feature of 'b'"),
        (["a", "b"], [[1.0, 1.0], [float("inf"), 1.0]], "the text feature of 'b'"),
        (["a", "b"], [1.0, 2.0], "column 'text_feature' is double, not lists"),
        (["a", "b"], ["1", "2"], "column 'text_feature' is string, not lists"),
        (["a", "b"], [[], []], "column 'text_feature' is list<element: null>, not lists of floating"),
        (["a", None], [[1.0], [2.0]], "row 1 has no concept"),
        ([" ", "a"], [[1.0], [2.0]], "row 0 has no concept"),
        ([1, 2], [[1.0], [2.0]], "row 0 has no concept"),
        (["a", "a"], [[1.0], [2.0]], "has 1 concepts; at least 2"),
        ([], pa.array([], pa.list_(pa.float32())), "has 0 concepts; at least 2"),
        ([], pa.array([], pa.list_(pa.float32(), 4)), "has 0 concepts; at least 2"),
    ],
)
def test_text_features_of_no_use_are_named(tmp_path: Path, words: list, features: list, message: str) -> None:
    features = features if isinstance(features, pa.Array) else pa.array(features)
    assert message in problem(write_parquet(tmp_path / "words.parquet", words, features))


@pytest.mark.parametrize("column", ["concept", "text_feature"])
def test_missing_columns_are_named(tmp_path: Path, column: str) -> None:
    path = write_parquet(tmp_path / "words.parquet", ["a", "b", "c"], pa.array(ROWS.tolist()))
    pq.write_table(pq.read_table(path).drop_columns(column), path)
    assert f"has no column '{column}'" in problem(path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "words.parquet", ["a", "b", "c"], pa.array(ROWS.tolist()))
    path.write_bytes(path.read_bytes()[:-40])
    assert "a Parquet vocabulary has" in problem(path)
