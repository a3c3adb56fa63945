"""Codes in shards on disk: the same nearest rows as a comparison with all of them, whatever the shards."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage_runner import ROOT, StageRunner

from stages.artifacts import Provenance
from stages.errors import InputError
from stages.index import sharded, sharded_command
from stages.index.sharded import MANIFEST, ShardedIndex, build, code_blocks, merged
from stages.tables import fixed_size_lists

MADE = Provenance("codes")


def random_codes(n: int, bits: int = 16, seed: int = 0) -> np.ndarray:
    """Of few bits, so that most distances are shared by many."""
    return np.random.default_rng(seed).integers(0, 256, (n, bits // 8), np.uint8)


def by_brute_force(codes: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    distances = np.bitwise_count(queries[:, None] ^ codes[None]).sum(axis=2, dtype=np.int32)
    rows = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return rows, np.take_along_axis(distances, rows, 1)


@pytest.mark.parametrize("bits", [8, 64, 72, 256])
@pytest.mark.parametrize(("per_shard", "count"), [(1, 3), (7, 1), (100, 40), (333, 400), (1000, 2000)])
def test_it_finds_what_a_comparison_with_all_finds(tmp_path: Path, bits: int, per_shard: int, count: int) -> None:
    n = 40 if per_shard == 1 else 1000
    codes, queries = random_codes(n, bits), random_codes(5, bits, seed=1)
    manifest = build(tmp_path / "shards", np.array_split(codes, 3), per_shard, MADE)
    assert manifest.codes == [per_shard] * (n // per_shard) + [n % per_shard] * (n % per_shard > 0)
    index = ShardedIndex(tmp_path / "shards")
    rows, distances = index.nearest(queries, count)
    expected = by_brute_force(codes, queries, count)
    np.testing.assert_array_equal(rows, expected[0])
    np.testing.assert_array_equal(distances, expected[1])
    assert (rows.dtype, distances.dtype, len(index)) == (np.int64, np.int32, n)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("queries", [0, 1, 3, 7])
def test_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, queries: int) -> None:
    monkeypatch.setattr(sharded, "cores", lambda: workers)
    monkeypatch.setattr(sharded, "SHARE", 10)
    monkeypatch.setattr(sharded, "COUNTERS", 2 * 8 * 17 * 50)  # two queries at a time
    codes = random_codes(500)
    build(tmp_path / "shards", [codes], 180, MADE)
    asked = random_codes(queries, seed=1)
    rows, _ = ShardedIndex(tmp_path / "shards").nearest(asked, 50)
    np.testing.assert_array_equal(rows, by_brute_force(codes, asked, 50)[0] if queries else np.empty((0, 0)))


def test_parts_of_the_shards_are_merged_exactly(tmp_path: Path) -> None:
    """As several machines do it."""
    codes, queries = random_codes(1000), random_codes(4, seed=1)
    build(tmp_path / "shards", [codes], 150, MADE)
    index = ShardedIndex(tmp_path / "shards")
    found = [index.nearest(queries, 30, range(7)[start::3]) for start in range(3)]
    np.testing.assert_array_equal(merged(found, 30)[0], by_brute_force(codes, queries, 30)[0])


def test_codes_come_from_files_of_both_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "BLOCK", 64)
    codes = random_codes(300)
    np.save(tmp_path / "a.npy", codes[:100])
    table = pa.table({"id": np.arange(200), "code": fixed_size_lists(codes[100:])})
    pq.write_table(table, tmp_path / "b.parquet")
    blocks = list(code_blocks([tmp_path / "a.npy", tmp_path / "b.parquet"]))
    assert max(map(len, blocks)) == 64
    np.testing.assert_array_equal(np.concatenate(blocks), codes)


@pytest.mark.parametrize(("name", "content", "words"), [
    ("none.npy", None, "not found"), ("none.parquet", None, "not found"),
    ("text.npy", b"text", "no array of codes"), ("text.parquet", b"text", "no table of codes"),
    ("empty.npy", b"", "no array of codes"), ("zip.npy", b"PK\x03\x04 and so on", "no array of codes"),
    ("header.npy", b"\x93NUMPY\x01\x00\x04\x00((((", "no array of codes"),
])  # fmt: skip
def test_files_without_codes_are_named(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{tmp_path / name}: {words}") as error:
        list(code_blocks([tmp_path / name]))
    assert "\n" not in str(error.value)


def test_several_arrays_and_nulls_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "codes", random_codes(3))
    (tmp_path / "codes.npz").rename(tmp_path / "codes.npy")
    with pytest.raises(InputError, match="no array of codes"):
        list(code_blocks([tmp_path / "codes.npy"]))
    kind = pa.list_(pa.uint8(), 2)
    for rows in ([[1, 2], None], [[1, None]]):
        pq.write_table(pa.table({"code": pa.array(rows, kind)}), tmp_path / "codes.parquet")
        with pytest.raises(InputError, match=r"no table of codes .*nulls"):
            list(code_blocks([tmp_path / "codes.parquet"]))


def test_pickles_and_other_arrays_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "codes.npy"
    for array, words in (
        (np.array([{}], object), "no array of codes"), (np.zeros((3, 8)), "holds float64"),
        (np.zeros(3, np.uint8), "holds uint8"), (np.zeros((3, 0), np.uint8), "holds uint8"),
    ):  # fmt: skip
        np.save(file, array, allow_pickle=True)
        with pytest.raises(InputError, match=words):
            list(code_blocks([file]))
    pq.write_table(pa.table({"code": [[1, 2], [3]]}), tmp_path / "lists.parquet")
    with pytest.raises(InputError, match="not a fixed-size list of uint8"):
        list(code_blocks([tmp_path / "lists.parquet"]))


def test_codes_of_two_lengths_or_none_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    for blocks, words in (([random_codes(3), random_codes(3, 24)], "24 and of 16 bits"), ([], "no codes"),
                          ([random_codes(0)], "no codes")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            build(tmp_path / "shards", blocks, 10, MADE)
    assert list(tmp_path.iterdir()) == []


def test_only_shards_are_replaced(tmp_path: Path) -> None:
    """A directory that was forgotten in the command must not cost what the next argument names."""
    codes, photos, link = tmp_path / "codes.npy", tmp_path / "photos", tmp_path / "link"
    np.save(codes, random_codes(30))
    photos.mkdir()
    (photos / "1.png").touch()
    (tmp_path / "own").mkdir()
    link.symlink_to(tmp_path / "own")
    content = codes.read_bytes()
    for taken in (codes, photos, link):
        with pytest.raises(InputError, match=f"{taken}: is there, and no directory of shards"):
            sharded_command.build(taken, [codes] if taken != codes else [tmp_path / "other.npy"], 10)
    assert codes.read_bytes() == content and (photos / "1.png").exists()
    sharded_command.build(tmp_path / "own", [codes], 10)
    with pytest.raises(InputError, match=r"own/codes-00000.faiss: lies in .*own, which is replaced"):
        sharded_command.build(tmp_path / "own", [tmp_path / "own/codes-00000.faiss"], 10)
    sharded_command.build(tmp_path / "own", [codes], 30)
    assert len(ShardedIndex(tmp_path / "own").manifest.codes) == 1


def test_a_changed_byte_is_found_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path / "shards", [random_codes(300)], 100, MADE)
    sharded_command.verify(tmp_path / "shards")
    assert capsys.readouterr().out == f"3 shards as noted in {tmp_path / 'shards/shards.json'}\n"
    file = tmp_path / "shards/codes-00001.faiss"
    content = file.read_bytes()
    file.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    with pytest.raises(InputError, match=r"codes-00001.faiss: its content is not what shards.json notes; build it"):
        sharded_command.verify(tmp_path / "shards")


@pytest.mark.parametrize("changes", [
    {"codes": [100, None, 100]}, {"codes": []}, {"codes": [], "sizes": [], "sha256": []}, {"bits": "x"}, {"bits": 0},
    {"bits": 12}, {"codes": [300]}, {"codes": [100, 200, 0]}, {"sizes": [1, 2, -3]}, {"provenance": {"stage": []}},
    {"provenance": None}, {"more": 1},
])  # fmt: skip
def test_a_manifest_of_other_fields_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    build(tmp_path, [random_codes(300)], 100, MADE)
    path = tmp_path / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=r"shards.json: has other fields than those of shards; build it again"):
        ShardedIndex(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "missing", "flipped", "other", "manifest", "fields"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    directory = tmp_path / "shards"
    build(directory, [random_codes(300)], 100, MADE)
    file, manifest = directory / "codes-00001.faiss", directory / MANIFEST
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        file.unlink()
    elif damage == "flipped":  # of its header
        file.write_bytes(b"\xff\xff\xff\xff" + file.read_bytes()[4:])
    elif damage == "other":
        build(tmp_path / "other", [random_codes(200, 8)], 200, MADE)
        size = file.stat().st_size
        other = (tmp_path / "other" / "codes-00000.faiss").read_bytes()
        file.write_bytes(other[:size] + bytes(size - len(other)))
    elif damage == "manifest":
        manifest.write_text("{")
    else:
        manifest.write_text('{"bits": 16}')
    with pytest.raises(InputError) as error:
        ShardedIndex(directory).nearest(random_codes(1), 5)
    assert str(error.value).startswith(str(manifest if damage in ("manifest", "fields") else file))
    assert "\n" not in str(error.value)


def test_queries_of_another_length_are_refused(tmp_path: Path) -> None:
    build(tmp_path / "shards", [random_codes(30)], 10, MADE)
    index = ShardedIndex(tmp_path / "shards")
    for queries in (random_codes(1, 24), random_codes(1).astype(np.int8), random_codes(1)[0]):
        with pytest.raises(InputError, match="has codes of 16 bits, the queries are"):
            index.nearest(queries, 5)


PROGRAM = """
import resource, sys
from pathlib import Path
import numpy as np
from stages.artifacts import Provenance
from stages.index.sharded import ShardedIndex, build
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rng, start = np.random.default_rng(0), peak()
blocks = (rng.integers(0, 256, (100_000, 64), np.uint8) for _ in range(40))
build(Path(sys.argv[1]), blocks, 200_000, Provenance("codes"))
index = ShardedIndex(Path(sys.argv[1]))
index.nearest(rng.integers(0, 256, (4, 64), np.uint8), 10)
print(peak() - start)
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="counts in other units there")
def test_memory_is_bounded_by_a_shard(tmp_path: Path) -> None:
    """256 MB of codes in shards of 13 MB."""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "shards")], capture_output=True, text=True, check=True, cwd=ROOT
    )  # fmt: skip
    assert int(done.stdout) < 80_000


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path, run_stages: StageRunner) -> None:
    codes, queries = random_codes(500), random_codes(3, seed=1)
    np.save(tmp_path / "codes.npy", codes)
    np.save(tmp_path / "queries.npy", queries)
    said = run_stages(tmp_path, "codes", "build", "shards", "codes.npy", "--per-shard", "200").check().stdout
    assert said == "500 codes of 16 bits in 3 shards in shards\n"
    search = ("codes", "search", "shards", "queries.npy", "--top", "4", "--output")
    assert run_stages(tmp_path, *search, "hits.parquet").check().stdout == ""
    hits = pq.read_table(tmp_path / "hits.parquet").to_pydict()
    rows, distances = by_brute_force(codes, queries, 4)
    assert (hits["row"], hits["distance"]) == (rows.ravel().tolist(), distances.ravel().tolist())
    assert (hits["query"], hits["rank"]) == ([0] * 4 + [1] * 4 + [2] * 4, [1, 2, 3, 4] * 3)
    assert "hits are written as .parquet" in run_stages(tmp_path, *search, "hits.txt").error()
    assert "not found" in run_stages(tmp_path, "codes", "search", "none", *search[3:], "hits.parquet").error()


def test_the_python_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``docs/distributed.md``."""
    monkeypatch.chdir(tmp_path)
    build(tmp_path / "shards", [random_codes(300)], 100, MADE)
    np.save("queries.npy", random_codes(2, seed=1))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "distributed.md").read_text(), re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(blocks[0], "docs/distributed.md", "exec"), scope)
    np.testing.assert_array_equal(scope["rows"], by_brute_force(random_codes(300), random_codes(2, seed=1), 100)[0])
