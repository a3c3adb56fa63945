"""Search: every kind of query against brute force over codes and features, re-ranking, later images, the commands."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub_server import serve_hub
from odd_pictures import ODD, READABLE, UNREADABLE, bomb
from PIL import Image
from rich.console import Console
from stage_runner import ROOT, StageRunner, copy

from stages.__main__ import one_line_errors
from stages.artifacts import (
    CLIP,
    CONCEPTS,
    FEATURES,
    HASHNET,
    INDEX,
    PROVENANCE_KEY,
    Provenance,
    read_json,
    write_json,
)
from stages.clip import load_clip
from stages.codes import pack, read_codes, unpack
from stages.encode import folder
from stages.encode.folder import encode, encode_files, files_of
from stages.encoder import Encoder
from stages.errors import InputError
from stages.features import Features
from stages.hashnet import load_hashnet, relaxed_codes
from stages.hdf5 import write_text
from stages.images import ImageShards, read_dataset, thumbnail
from stages.publish import publish
from stages.search import Searcher
from stages.search.command import show, told
from stages.search.hits import Hits
from stages.search.text import EXAMPLES, text_code
from stages.tables import matrix, read_table

ARTIFACTS = ["data", "models", "params.yaml"]


@pytest.fixture
def project(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny run as current directory; not to be written to."""
    monkeypatch.chdir(tiny_run)
    return tiny_run


@pytest.fixture
def here(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    copy(ARTIFACTS, tiny_run, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def searcher(tiny_run: Path) -> Searcher:
    return Searcher.open(tiny_run)


def database() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, codes in {-1, +1}, and features of the database."""
    codes = read_codes()
    with Features() as features:
        return codes.database_id, unpack(codes.database).astype(int), features.images(codes.database_id)


def by_distance(signs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, distances and features of the database, nearest to a code in {-1, +1} first."""
    ids, codes, features = database()
    distances = (codes.shape[1] - codes @ signs) // 2
    order = np.argsort(distances, kind="stable")
    return ids[order], distances[order], features[order]


def relaxed(ids: list[int]) -> np.ndarray:
    net, _ = load_hashnet()
    with Features() as features:
        return relaxed_codes(net, torch.from_numpy(features.images(np.array(ids)))).numpy()


def check(hits: Hits, signs: np.ndarray, without: int | None = None) -> None:
    """The hits are the first ones by distance."""
    ids, distances, _ = by_distance(signs)
    distances, ids = distances[ids != without], ids[ids != without]
    np.testing.assert_array_equal(hits.ids, ids[: len(hits)])
    np.testing.assert_array_equal(hits.distances, distances[: len(hits)])
    np.testing.assert_array_equal(unpack(hits.code[None])[0], signs)
    assert hits.scores is None


# ---- queries


def test_by_image_is_the_nearest_to_its_code(project, searcher, pictures, tmp_path):
    index = int(read_codes().query_id[3])
    path = tmp_path / "a photo.png"
    path.write_bytes(pictures[index])
    expected = np.where(relaxed([index])[0] >= 0, 1, -1)
    for given in (path, str(path), pictures[index], Image.open(io.BytesIO(pictures[index]))):
        hits = searcher.by_image(given, top=12)
        assert len(hits) == 12
        check(hits, expected)
    assert searcher.by_image(path).query == str(path)


def test_by_images_is_what_they_have_in_common(project, searcher, pictures):
    chosen = [7, 30, 101]
    mean = relaxed(chosen).mean(axis=0)
    hits = searcher.by_images([pictures[i] for i in chosen], top=9)
    check(hits, np.where(mean >= 0, 1, -1))
    with Features() as features:
        feature = features.images(np.array(chosen)).mean(axis=0)
    reranked = searcher.by_images([pictures[i] for i in chosen], top=9, rerank=True)
    ids, _, rows = by_distance(np.where(mean >= 0, 1, -1))
    scores = rows @ feature / np.linalg.norm(feature)
    np.testing.assert_allclose(reranked.scores, np.sort(scores)[::-1][:9], atol=1e-3)
    assert set(reranked.ids) <= set(ids[np.argsort(-scores)][:11])


def test_by_id_leaves_itself_out(project, searcher):
    codes = read_codes()
    image = int(codes.database_id[11])
    check(searcher.by_id(image, top=300), unpack(codes.database[11:12])[0].astype(int), without=image)
    assert image not in searcher.by_id(image, top=300).ids
    query = int(codes.query_id[2])
    check(searcher.by_id(query, top=5), unpack(codes.query[2:3])[0].astype(int))


def test_radius_bounds_the_distance(project, searcher):
    codes = read_codes()
    signs = unpack(codes.query[:1])[0].astype(int)
    _, distances, _ = by_distance(signs)
    radius = int(distances[40])
    hits = searcher.by_id(int(codes.query_id[0]), top=1000, radius=radius)
    assert len(hits) == (distances <= radius).sum() < len(distances)
    check(hits, signs)
    assert len(searcher.by_id(int(codes.query_id[0]), top=3, radius=radius)) == 3
    assert len(searcher.by_id(int(codes.query_id[0]), top=1000, radius=0)) == (distances == 0).sum()


def test_re_ranking_orders_by_the_cosine_of_features(project, searcher):
    codes = read_codes()
    image = int(codes.query_id[5])
    hits = searcher.by_id(image, top=15, rerank=True)
    ids, distances, rows = by_distance(unpack(codes.query[5:6])[0].astype(int))
    with Features() as features:
        scores = rows @ features.images(np.array([image]))[0]
    order = np.argsort(-scores, kind="stable")[:15]  # of all: there are fewer than candidates
    np.testing.assert_array_equal(hits.ids, ids[order])
    np.testing.assert_array_equal(hits.distances, distances[order])
    np.testing.assert_allclose(hits.scores, scores[order], atol=1e-6)
    near = searcher.by_id(image, top=300, rerank=True, radius=4)
    assert (near.distances <= 4).all() and set(near.ids) == set(ids[distances <= 4])


def test_only_candidates_are_re_ranked(project, searcher, monkeypatch):
    monkeypatch.setattr("stages.search.searcher.CANDIDATES", 20)
    image = int(read_codes().query_id[5])
    ids, _, _ = by_distance(unpack(read_codes().query[5:6])[0].astype(int))
    assert set(searcher.by_id(image, top=2, rerank=True).ids) <= set(ids[:20])


def test_by_text_asks_the_images_most_like_the_text(project, searcher):
    clip = load_clip()
    with Features() as features:
        train, ids = features.train(), features.train_id
    feature = clip.encode_texts(["a photo of a dog and a boat"]).numpy()[0]
    likest = ids[np.argsort(-(train @ feature))[:EXAMPLES]]
    signs = np.where(relaxed(sorted(likest.tolist())).mean(axis=0) >= 0, 1, -1)
    check(searcher.by_text("a dog  and a boat", top=10), signs)
    hits = searcher.by_text("a dog and a boat", top=10, rerank=True)
    scores = database()[2] @ feature
    np.testing.assert_allclose(hits.scores, np.sort(scores)[::-1][:10], atol=1e-5)


def test_a_concept_needs_no_text_tower(project, searcher):
    """Its feature is that which was mined with."""
    table, _, _ = read_table(CONCEPTS, {"concept": pa.string(), "text_feature": None})
    fresh = Searcher.open(project)
    row = table["concept"].to_pylist().index("boat")
    np.testing.assert_array_equal(fresh._texts.features([" Boat"])[0], matrix(table, "text_feature")[row])
    assert "_model" not in vars(fresh._texts)


def test_text_code_is_the_mean_of_the_likest():
    images = np.eye(8)
    codes = np.random.default_rng(0).standard_normal((8, 4))
    text = np.array([0.1, 0.9, 0.8, 0.0, 0.7, 0.6, 0.5, 0.2])
    np.testing.assert_allclose(text_code(text, images, codes), codes[[1, 2, 4, 5, 6]].mean(axis=0))


def test_names_and_labels_are_those_of_the_images(project, searcher):
    dataset = read_dataset()
    labels = ImageShards().labels(len(dataset.class_names))
    hits = searcher.by_id(1, top=6)
    for entry in hits.to_dicts():
        assert entry["labels"] == [dataset.class_names[i] for i in np.flatnonzero(labels[entry["id"]])]
        assert entry["name"] == f"scene-{entry['id']:06d}.png"
    assert [entry["rank"] for entry in hits.to_dicts()] == list(range(1, 7))
    assert all(data.startswith(b"\xff\xd8") for data in searcher.thumbnails(hits))


def test_importing_costs_little():
    code = "import sys, stages.search; print(sorted({'torch', 'faiss', 'numpy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        import stages.search

        stages.search.Other  # noqa: B018


def test_searching_by_id_imports_no_torch(project):
    code = "import sys; from stages.search import Searcher; Searcher.open().by_id(1); print('torch' in sys.modules)"
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == "False"


# ---- later images


def test_added_images_are_found_and_re_ranked(here, pictures):
    searcher, codes = Searcher.open(), read_codes()
    image = int(codes.query_id[0])
    features, relaxed_code = Encoder.load().images([Image.open(io.BytesIO(pictures[image])).convert("RGB")])
    searcher.index.add([10_000], pack(relaxed_code), ["mine.png"], [thumbnail(pictures[image], 96)], features)
    searcher.index.add([10_001], pack(-relaxed_code))
    for opened in (searcher, Searcher.open()):
        hits = opened.by_id(image, top=400, rerank=True)
        assert (hits.ids[0], hits.names[0], hits.labels[0]) == (10_000, "mine.png", [])
        assert hits.scores[0] == pytest.approx(1, abs=1e-3)
        assert hits.ids[-1] == 10_001 and np.isnan(hits.scores[-1])
        assert hits.to_dicts()[-1]["score"] is None
        assert opened.by_id(10_000, top=1, radius=0, rerank=True).scores is not None
    searcher.index.remove([10_000, int(codes.database_id[0])])
    assert not {10_000, int(codes.database_id[0])} & set(Searcher.open().by_id(image, top=400).ids)
    with pytest.raises(InputError, match="no features"):
        searcher.by_id(10_001, rerank=True)


def test_a_folder_is_added_from_the_command_line(here, pictures, run_stages: StageRunner):
    codes = read_codes()
    Path("photos").mkdir()
    for image in codes.query_id[:3].tolist():
        Path(f"photos/{image}.png").write_bytes(pictures[image])
    Path("photos/bad.png").write_bytes(b"")
    gone = codes.database_id[:2].tolist()
    result = run_stages(here, "index", "--add", "photos", "--remove", str(gone[0]), "--remove", str(gone[1])).check()
    first = int(codes.database_id.max()) + 1
    assert result.stdout == f"2 images removed\n3 images added, with ids from {first}\n"
    assert result.stderr.startswith("skipped ") and "bad.png" in result.stderr
    index = Searcher.open().index
    assert index.ids[-3:].tolist() == [first, first + 1, first + 2] and not set(gone) & set(index.ids)
    names = index.names(np.arange(len(index) - 3, len(index)))
    for image, name in zip(range(first, first + 3), names, strict=True):
        np.testing.assert_array_equal(index.code_of(image), codes.query[codes.query_id == int(Path(name).stem)][0])
        assert index.thumbnails(np.array([image]))[image].startswith(b"\xff\xd8")
    hits = Searcher.open().by_image(Path(names[1]), top=1, radius=0, rerank=True)
    assert hits.names == [names[1]] and hits.scores[0] == pytest.approx(1, abs=1e-3)
    assert "no image 10" in run_stages(here, "index", "--remove", "100000").error()
    for file in Path("photos").iterdir():
        file.write_bytes(b"")
    assert "none of 4 files" in run_stages(here, "index", "--add", "photos").stderr


# ---- what cannot be


@pytest.mark.parametrize("name", UNREADABLE)
def test_pictures_that_cannot_be_read(project, searcher, name, tmp_path):
    with pytest.raises(InputError) as error:
        searcher.by_image(UNREADABLE[name])
    assert "\n" not in str(error.value)
    path = tmp_path / "bad.jpg"
    path.write_bytes(UNREADABLE[name])
    with pytest.raises(InputError, match=re.escape(str(path))):
        searcher.by_image(path)


def test_arguments_that_make_no_sense(project, searcher):
    for query, words in (
        (lambda: searcher.by_id(10**9), "ids are between"), (lambda: searcher.by_id(-1), "no such image"),
        (lambda: searcher.by_images([]), "no image"), (lambda: searcher.by_text("  "), "empty"),
        (lambda: searcher.by_id(1, top=0), "top is 0"), (lambda: searcher.by_id(1, radius=-1), "radius is -1"),
        (lambda: searcher.by_id(1, radius=33), "32 bits"),
        (lambda: searcher.by_image(Image.new("L", (10_000, 10_000))), "pixels"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            query()


def of_another(path: Path, key: str) -> Callable[[], None]:
    def change() -> None:
        with h5py.File(path, "a") as file:
            write_text(file, PROVENANCE_KEY, json.dumps(json.loads(file.attrs[PROVENANCE_KEY]) | {key: "c" * 64}))

    return change


def trained_otherwise() -> None:
    content = read_json(HASHNET / "config.json")
    content["provenance"]["params"]["seed"] = 77
    write_json(HASHNET / "config.json", content)


@pytest.mark.parametrize(("change", "query", "path", "stage"), [
    (of_another(FEATURES, "dataset"), "rerank", FEATURES, "extract"),
    (lambda: FEATURES.unlink(), "rerank", FEATURES, "extract"),
    (lambda: shutil.rmtree(HASHNET), "image", HASHNET, "train"),
    (trained_otherwise, "image", INDEX, "index"),
    (lambda: shutil.rmtree(CLIP), "image", CLIP, "weights"),
    (lambda: CONCEPTS.unlink(), "text", CONCEPTS, "mine"),
    (lambda: shutil.rmtree(INDEX), "id", INDEX, "index"),
])  # fmt: skip
def test_artifacts_that_do_not_fit_are_named(here, change, query, path, stage):
    change()
    with pytest.raises(InputError, match=f"dvc repro {stage}") as error:
        searcher = Searcher.open()
        {"rerank": lambda: searcher.by_id(1, rerank=True), "image": lambda: searcher.by_image(READABLE["grey"]),
         "text": lambda: searcher.by_text("a dog"), "id": lambda: searcher.by_id(1)}[query]()  # fmt: skip
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


# ---- the command


def test_the_table_shows_every_hit(project, searcher):
    hits = searcher.by_id(1, top=5, rerank=True)
    console = Console(file=io.StringIO(), width=120)
    show(hits, console)
    lines = console.file.getvalue().splitlines()
    assert lines[0].strip() == "image 1" and len(lines) == 7
    for line, entry in zip(lines[2:], hits.to_dicts(), strict=True):
        assert line.split()[:4] == [str(entry["rank"]), str(entry["id"]), str(entry["distance"]),
                                    f"{entry['score']:.3f}"]  # fmt: skip


def test_markup_in_names_is_text(searcher):
    hits = searcher.by_id(1, top=1)
    odd = Hits("[red]x[/nonsense]", hits.code, hits.ids, hits.distances, None, ["[bold]a[/x]"], [["[b]"]])
    console = Console(file=io.StringIO(), width=120)
    show(odd, console)
    assert "[red]x[/nonsense]" in console.file.getvalue() and "[bold]a[/x]" in console.file.getvalue()


def test_command_line(here, run_stages: StageRunner, pictures, searcher):
    for name, data in (("one.png", pictures[4]), ("two.png", pictures[9]), ("bad.png", b"none"), ("bomb.png", bomb())):
        Path(name).write_bytes(data)
    found = json.loads(run_stages(here, "search", "--image", "one.png", "--top", "3", "--json").check().stdout)
    assert found == told(searcher.by_images([Path("one.png")], top=3))
    assert len(found["code"]) == 32 and [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    both = run_stages(here, "search", "--image", "one.png", "--image", "two.png", "--json", "--top", "3").check().stdout
    assert json.loads(both) == told(searcher.by_images([Path("one.png"), Path("two.png")], top=3))
    assert run_stages(here, "search", "--text", "a dog", "--rerank").check().stdout.startswith('"a dog"')
    for arguments, words in (
        ((), "give one of"), (("--id", "1", "--text", "a"), "give one of"), (("--image", "bad.png"), "bad.png: "),
        (("--image", "bomb.png"), "bomb"), (("--image", "none.png"), "not found"), (("--id", "99999"), "no such image"),
        (("--id", "1", "--output", "hits.csv"), "hits.csv"), (("--id", "1", "--top", "0"), "top is 0"),
    ):  # fmt: skip
        assert words in run_stages(here, "search", *arguments).error()


def test_output_files(here, run_stages: StageRunner, searcher):
    hits = searcher.by_id(1, top=7, rerank=True)
    for kind in ("json", "parquet", "png"):
        result = run_stages(here, "search", "--id", "1", "--top", "7", "--rerank", "--output", f"hits.{kind}").check()
        assert result.stdout == ""
    assert json.loads(Path("hits.json").read_text()) == told(hits)
    table = pd.read_parquet("hits.parquet")
    assert table["id"].tolist() == hits.ids.tolist() and table["labels"].map(list).tolist() == hits.labels
    assert json.loads(pq.read_schema("hits.parquet").metadata[b"code"]) == told(hits)["code"]
    with Image.open("hits.png") as sheet:
        assert sheet.width > 600 and len(sheet.convert("RGB").getcolors(10**6)) > 500
    run_stages(here, "search", "--id", "1", "--radius", "0", "--output", "none.png").check()
    run_stages(here, "search", "--id", "1", "--radius", "0", "--output", "none.parquet").check()
    assert json.loads(run_stages(here, "search", "--id", "1", "--radius", "0", "--json").check().stdout)["hits"] == []


# ---- encode and export


def test_encoded_files_have_the_codes_of_the_data_set(here, pictures, run_stages: StageRunner):
    Path("photos/a b").mkdir(parents=True)
    for index, data in enumerate(pictures[:100]):
        Path(f"photos/a b/{index:03d}.png").write_bytes(data)
    for name in ("bad.jpg", "empty.png"):
        Path("photos", name).write_bytes(b"")
    Path("photos/notes.txt").write_text("no image")
    result = run_stages(here, "encode", "--folder", "photos", "--output", "out.parquet").check()
    assert result.stdout == "100 codes of 32 bits in out.parquet, 2 files skipped\n"
    skipped = [Path(line.split(":")[0]).name for line in result.stderr.splitlines()]
    assert sorted(skipped) == ["bad.jpg", "empty.png"]
    table, _, extra = read_table(Path("out.parquet"), {"path": pa.string()})
    assert extra["bits"] == 32
    assert [Path(path).name for path in table["path"].to_pylist()] == [f"{index:03d}.png" for index in range(100)]
    found = matrix(pq.read_table("out.parquet"), "code")
    np.testing.assert_array_equal(found, pack(relaxed(list(range(100)))))


def test_paths_come_from_standard_input(here, pictures, monkeypatch):
    Path("é.png").write_bytes(pictures[3])
    Path("b.png").write_bytes(pictures[5])
    stdin = io.TextIOWrapper(io.BytesIO("é.png\n\nnone.png\nb.png\n".encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    encode("-", Path("out.npy"), None)
    np.testing.assert_array_equal(np.load("out.npy"), pack(relaxed([3, 5])))
    assert read_json(Path("out.paths.json")) == {"paths": ["é.png", "b.png"]}


def test_workers_change_nothing(here, pictures, monkeypatch):
    monkeypatch.setattr(folder, "BATCH", 7)
    Path("photos").mkdir()
    for index, data in enumerate(pictures[:20]):
        Path(f"photos/{index:02d}.png").write_bytes(data)
    for name, data in ODD.items():
        Path("photos", f"{name}.jpg").write_bytes(data)
    encoder = Encoder.load()
    alone, helped = (list(encode_files(encoder, files_of("photos"), workers, 32)) for workers in (0, 2))
    for one, other in zip(alone, helped, strict=True):
        assert (one.names, one.skipped, one.thumbnails) == (other.names, other.skipped, other.thumbnails)
        np.testing.assert_array_equal(one.codes, other.codes)
    assert sum(len(batch.names) for batch in alone) == 20 + len(READABLE)
    assert {Path(path).stem for batch in alone for path, _ in batch.skipped} == set(UNREADABLE)


def test_nothing_to_encode_is_one_line(here, capsys):
    Path("photos").mkdir()
    cases = [(("photos", Path("a.npy")), "no image files"), (("nowhere", Path("a.npy")), "no folder"),
             (("photos", None), "give both"), ((None, Path("a.npy")), "give both"),
             (("photos", Path("a.csv")), ".parquet or .npy")]  # fmt: skip
    for (given, output), words in cases:
        with pytest.raises(SystemExit) as ended, one_line_errors():
            encode(given, output, None)
        told_off = capsys.readouterr().err
        assert ended.value.code == 2 and words in told_off and told_off.count("\n") == 1
    Path("photos/bad.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of 1 files"):
        encode("photos", Path("a.npy"), None)
    assert not Path("a.npy").exists()


def test_export(here, run_stages: StageRunner):
    codes = read_codes()
    run_stages(here, "export", "codes.parquet").check()
    table = pq.read_table("codes.parquet")
    np.testing.assert_array_equal(table["id"].to_numpy(), codes.database_id)
    np.testing.assert_array_equal(matrix(table, "code"), codes.database)
    run_stages(here, "export", "codes.npy").check()
    np.testing.assert_array_equal(np.load("codes.npy"), codes.database)
    np.testing.assert_array_equal(np.load("codes.ids.npy"), codes.database_id)
    assert "codes.csv" in run_stages(here, "export", "codes.csv").error()


# ---- publish


def test_a_published_network_is_used_elsewhere(here, pictures, run_stages: StageRunner, tmp_path_factory, monkeypatch):
    target = tmp_path_factory.mktemp("away") / "network"
    run_stages(here, "publish", str(target)).check()
    files = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert {"README.md", "models/hashnet/model.safetensors", "models/clip/model.safetensors",
            "data/concepts.parquet"} <= files  # fmt: skip
    text = (target / "README.md").read_text()
    assert "32-bit" in text and "`fused`" in text and "scenes" in text
    expected = pack(relaxed([6]))
    for path in (HASHNET, CLIP):
        shutil.rmtree(path)
    Path("a.png").write_bytes(pictures[6])
    hits = Searcher.open(model=target).by_image("a.png", top=2)
    np.testing.assert_array_equal(hits.code, expected[0])
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "a.png").write_bytes(pictures[6])
    run_stages(elsewhere, "encode", "--folder", ".", "--output", "a.npy", "--model", str(target)).check()
    np.testing.assert_array_equal(np.load(elsewhere / "a.npy"), expected)


def test_a_network_comes_from_the_hub(here, pictures, tmp_path_factory):
    """Fetched once; then it is there without the hub, too."""
    publish(Path("net"))
    files = {file.relative_to("net").as_posix(): file.read_bytes() for file in Path("net").rglob("*") if file.is_file()}
    Path("photos").mkdir()
    Path("photos/a.png").write_bytes(pictures[6])
    expected = pack(relaxed([6]))

    def encoded(name: str, **environment: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "stages", "encode", "--folder", "photos", "--output", "a.npy", "--model", name]
        Path("a.npy").unlink(missing_ok=True)
        settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "PYTHONPATH": str(ROOT), **environment}
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings})

    cache = tmp_path_factory.mktemp("hub cache")
    with serve_hub({"org/net": files, "org/other": {"config.json": b"{}"}}) as hub:
        for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
            done = encoded("hf-hub:org/net", **environment)
            assert done.returncode == 0, done.stderr
            np.testing.assert_array_equal(np.load("a.npy"), expected)
        for name, words in (("org/other", "no published network"), ("org/none", "does not exist")):
            done = encoded(f"hf-hub:{name}")
            assert (done.returncode, done.stderr.count("\n")) == (2, 1)
            assert done.stderr.startswith("error: --model: ") and words in done.stderr


def test_publishing_overwrites_nothing_else(here):
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("dear")
    for target in (Path("mine"), Path("params.yaml"), Path(), Path("..")):
        with pytest.raises(InputError, match="name a new folder"):
            publish(target)
    assert Path("mine/thesis.txt").read_text() == "dear"
    publish(Path("net"))
    publish(Path("net"))
    assert Provenance(**read_json(Path("net/models/hashnet/config.json"))["provenance"]).stage == "train"


# ---- documentation


def test_the_example_of_the_documentation_runs(here, pictures):
    Path("photo.jpg").write_bytes(pictures[int(read_codes().query_id[1])])  # that is not in the index yet
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "search.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    scope: dict[str, object] = {}
    exec(compile(blocks[0], "docs/search.md", "exec"), scope)
    assert len(Searcher.open().index) == len(read_codes().database)  # what it added, it removed


def test_lancedb(here):
    """The recipe of the documentation finds what the index finds."""
    from stages.index.export import export

    export(Path("codes.parquet"))
    blocks = re.findall(r"```python lancedb\n(.*?)```", (ROOT / "docs" / "search.md").read_text("utf-8"), re.DOTALL)
    scope: dict[str, object] = {}
    exec(compile(blocks[0], "docs/search.md", "exec"), scope)
    expected = Searcher.open().index.nearest(read_codes().query[0], 10)[1]
    assert sorted(row["_distance"] for row in scope["search"](read_codes().query[0], 10)) == sorted(expected)
